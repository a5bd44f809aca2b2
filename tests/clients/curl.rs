//! curl, which is everywhere.

use std::process::{Command, Stdio};

use super::common::TOKEN;
use super::common::backend::{Backend, TOOLBOX};
use super::guest::{self, FILE, GZIP_TEXT, sha256};
use super::setup::{PORT_URL, Said, Stage, TOOLBOX_URL, run, run_fed, tail};

struct Curl {
    stage: Stage,
    guest: Backend,
}

impl Curl {
    fn new() -> Self {
        let stage = Stage::new();
        let guest = stage.stand_in.serve(TOOLBOX, guest::serve);
        Self { stage, guest }
    }

    fn command(arguments: &[&str]) -> Command {
        let mut command = Command::new("curl");
        command.args(["-q", "--silent", "--show-error", "--noproxy", "*", "--max-time", "60"]);
        command.args(["--header", &format!("X-Daytona-Authorization: Bearer {TOKEN}")]).args(arguments);
        command
    }

    /// Whatever comes of it.
    #[track_caller]
    fn any(&self, arguments: &[&str]) -> Said {
        run(&self.stage.host, &mut Self::command(arguments))
    }

    /// The output of a run that must succeed.
    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        self.succeeded(arguments, self.any(arguments))
    }

    #[track_caller]
    fn succeeded(&self, arguments: &[&str], said: Said) -> String {
        assert_eq!(said.code, Some(0), "{arguments:?}: {said:?}\nrunner: {}", tail(&self.stage.host.log()));
        said.out
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self.ok(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    fn path(&self, name: &str) -> String {
        self.stage.host.path(name).display().to_string()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.stage.host.path(name)).unwrap()
    }
}

fn at(base: &str, path: &str) -> String {
    format!("{base}/{path}")
}

#[test]
fn curl_sends_and_gets_by_all_methods() {
    let curl = Curl::new();
    for base in [TOOLBOX_URL, PORT_URL] {
        let upload = at(base, "upload?x=%2F");
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let seen = curl.json(&["--request", method, "--data", "a=b", &upload]);
            assert_eq!((&seen["method"], &seen["bytes"]), (&method.into(), &3.into()), "{seen}");
        }
        let seen = curl.json(&["--form", "file=@/etc/passwd", &upload]);
        assert!(seen["type"].as_str().unwrap().starts_with("multipart/form-data; boundary="), "{seen}");
        // Nobody's credentials but the runner's end at the runner; a body of nothing is one too.
        assert_eq!(curl.json(&["--data", "", &upload])["bytes"], 0);
        assert_eq!(curl.ok(&[&at(base, "small")]).len(), 96);
        assert_eq!(curl.ok(&["--write-out", "%{http_code}", &at(base, "nothing")]), "204");
        assert_eq!(curl.ok(&["--write-out", "%{http_code}", &at(base, "unchanged")]), "304");
        assert_eq!(curl.ok(&[&at(base, "until-the-end")]), "all of it");
        assert_eq!(curl.ok(&[&at(base, "chunks")]).lines().count(), 1000);
        let moved = curl.ok(&["--location", "--write-out", "%{num_redirects} %{url_effective}", &at(base, "moved")]);
        assert!(moved.ends_with(&format!("piece 999\n1 {}", at(base, "chunks?moved=1"))), "{moved}");
    }
}

#[test]
fn curl_uploads_with_and_without_asking() {
    let curl = Curl::new();
    let large: Vec<u8> = guest::file().into_iter().cycle().take(64 << 20).collect();
    let (file, sum) = (curl.path("large"), sha256(&large));
    std::fs::write(&file, &large).unwrap();
    let upload = at(TOOLBOX_URL, "upload");

    let asking = ["--verbose", "--header", "Expect: 100-continue", "--upload-file", &file, &upload];
    let said = curl.any(&asking);
    assert!(said.err.contains("< HTTP/1.1 100 Continue"), "{}", said.err);
    println!("64 MiB up with Expect in {:?}", said.took);
    let seen: serde_json::Value = serde_json::from_str(&curl.succeeded(&asking, said)).unwrap();
    assert_eq!((&seen["bytes"], &seen["sha256"]), (&large.len().into(), &sum.as_str().into()), "{seen}");
    assert_eq!((&seen["method"], &seen["chunked"]), (&"PUT".into(), &false.into()), "the length is passed on: {seen}");

    let seen = curl.json(&["--header", "Expect:", "--upload-file", &file, &upload]);
    assert_eq!(seen["sha256"], sum, "{seen}");

    let chunked = ["--upload-file", "-", "--request", "POST", &upload];
    let input = Stdio::from(std::fs::File::open(&file).unwrap());
    let said = run_fed(&curl.stage.host, &mut Curl::command(&chunked), input);
    println!("64 MiB up in chunks in {:?}", said.took);
    let seen: serde_json::Value = serde_json::from_str(&curl.succeeded(&chunked, said)).unwrap();
    assert_eq!((&seen["sha256"], &seen["chunked"]), (&sum.into(), &true.into()), "{seen}");
}

/// A guest that does not want a body says so before it has come, and that is what the client hears.
#[test]
fn curl_hears_a_refusal_before_its_body_is_sent() {
    let curl = Curl::new();
    let file = curl.path("large");
    std::fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
    let report = "%{stderr}%{http_code} %{size_upload}";
    for expect in ["Expect: 100-continue", "Expect:"] {
        let early = at(TOOLBOX_URL, "early");
        let said = curl.any(&["--header", expect, "--write-out", report, "--upload-file", &file, &early]);
        println!("refused with {expect:?} in {:?}: {}", said.took, said.err);
        assert!(said.err.contains("413 "), "{said:?}");
        assert_eq!((said.code, said.out.as_str()), (Some(0), "too much\n"), "{said:?}");
        assert!(said.took.as_secs() < 10, "{:?}", said.took);
    }
    // The guest is in nobody's way afterwards.
    assert_eq!(curl.ok(&[&at(TOOLBOX_URL, "small")]).len(), 96);
}

#[test]
fn curl_resumes_what_broke_off() {
    let curl = Curl::new();
    let (whole, part) = (guest::file(), curl.path("part"));
    for base in [TOOLBOX_URL, PORT_URL] {
        let _ = std::fs::remove_file(&part);
        let broken = at(base, "broken");
        let said = curl.any(&["--output", &part, &broken]);
        assert_eq!(said.code, Some(18), "a body that is cut off is no whole one: {said:?}");
        let got = curl.read("part");
        assert!(!got.is_empty() && got.len() <= FILE / 3 && got == whole[..got.len()], "{} bytes", got.len());
        curl.ok(&["--continue-at", "-", "--output", &part, &broken]);
        assert!(curl.read("part") == whole, "the parts are the whole");

        let file = at(base, "file");
        for (range, expected) in [("0-9", &whole[..10]), ("-7", &whole[FILE - 7..]), ("100-", &whole[100..])] {
            let parts = curl.path("range");
            let status = curl.ok(&["--range", range, "--write-out", "%{http_code}", "--output", &parts, &file]);
            assert!(status == "206" && curl.read("range") == expected, "{range}: {status}");
        }
        let beyond = curl.any(&["--range", "99999999-", "--write-out", "%{http_code}", &file]);
        assert_eq!(beyond.out, "416", "{beyond:?}");
    }
}

#[test]
fn curl_looks_at_heads_codings_and_trailers() {
    let curl = Curl::new();
    for base in [TOOLBOX_URL, PORT_URL] {
        let head = curl.ok(&["--head", &at(base, "file")]).to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        for line in [format!("content-length: {FILE}"), "accept-ranges: bytes".to_owned(), "etag: \"1\"".to_owned()] {
            assert!(head.contains(&format!("{line}\r\n")), "{line} in {head}");
        }
        let gzip = at(base, "gzip");
        let dump = ["--include", "--compressed", &gzip];
        let whole = curl.ok(&dump);
        assert!(whole.to_ascii_lowercase().contains("content-encoding: gzip\r\n"), "{whole}");
        assert!(whole.ends_with(GZIP_TEXT), "{whole}");
        let packed = curl.path("packed");
        curl.ok(&["--header", "Accept-Encoding: gzip", "--output", &packed, &gzip]);
        assert_eq!(curl.read("packed")[..2], [0x1f, 0x8b], "what is packed stays packed");
        assert_eq!(curl.ok(&[&gzip]), GZIP_TEXT);

        let text = curl.ok(&["--include", "--header", "TE: trailers", &at(base, "trailers")]);
        let lower = text.to_ascii_lowercase();
        assert!(
            lower.contains("transfer-encoding: chunked\r\n") && lower.contains("trailer: x-checksum\r\n"),
            "{text}"
        );
        assert!(text.contains("piece 2\n") && lower.contains("x-checksum: of-three\r\n"), "{text}");
    }
}

#[test]
fn curl_keeps_its_connection_and_speaks_older_and_newer_http() {
    let curl = Curl::new();
    let (small, file, chunks) = (at(TOOLBOX_URL, "small"), at(PORT_URL, "file"), at(PORT_URL, "chunks"));
    let mut arguments = vec!["--write-out", "%{stderr}%{num_connects} "];
    for url in [&small, &file, &chunks, &small, &chunks, &small] {
        arguments.extend(["--output", "/dev/null", url]);
    }
    let said = curl.any(&arguments);
    assert_eq!((said.code, said.err.trim()), (Some(0), "1 0 0 0 0 0"), "one connection for all: {said:?}");
    let after_one = curl.guest.accepted();
    curl.any(&arguments);
    println!("guest connections for 12 requests of 2 clients: {}", curl.guest.accepted());
    assert!(after_one <= 6, "{after_one}");

    // Nothing that HTTP/1.0 does not know: the end of the connection is the end of the body.
    let old = curl.ok(&["--http1.0", "--include", &chunks]);
    assert!(!old.to_ascii_lowercase().contains("transfer-encoding"), "{}", &old[..400.min(old.len())]);
    assert!(old.ends_with("piece 999\n"));
    assert_eq!(curl.ok(&["--http1.0", &small]).len(), 96);
    // HTTP/2 is not spoken: whoever asks for it goes on without, whoever insists hears at once that it is not.
    assert_eq!(curl.ok(&["--http2", "--write-out", " %{http_version}", &small]).split_once(' ').unwrap().1, "1.1");
    let insists = curl.any(&["--http2-prior-knowledge", &small]);
    println!("HTTP/2 without asking: {insists:?}");
    assert!(insists.code != Some(0) && insists.took.as_secs() < 5, "{insists:?}");
    assert_eq!(curl.ok(&[&small]).len(), 96);
}
