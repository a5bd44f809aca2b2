//! Files to and from the guest, as users move them.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Said, World, run};

fn content(bytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    })
    .take(bytes)
    .collect()
}

#[test]
fn sftp_and_scp() {
    let world = World::new();
    let (up, down) = (world.host.path("up"), world.host.path("down"));
    let bytes = content(3_000_000);
    std::fs::write(&up, &bytes).unwrap();
    std::fs::write(
        world.host.path("batch"),
        format!(
            "put {} there\nmkdir dir\nrename there dir/moved\nls -l dir\nget dir/moved {}\n",
            up.display(),
            down.display()
        ),
    )
    .unwrap();
    let said = world.client("sftp", &["-b", &world.host.path("batch").display().to_string(), "box@127.0.0.1"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("3000000"), "{said:?}");
    assert_eq!(std::fs::read(&down).unwrap(), bytes);
    assert_eq!(std::fs::read(world.home("dir/moved")).unwrap(), bytes);

    for (n, protocol) in [&[] as &[&str], &["-O"]].into_iter().enumerate() {
        let there = format!("box@127.0.0.1:scp{n}");
        let back = world.host.path(format!("back{n}"));
        let said = world.client("scp", &[protocol, &[&up.display().to_string(), &there]].concat());
        assert_eq!(said.code, Some(0), "{protocol:?} {said:?}");
        let said = world.client("scp", &[protocol, &[&there, &back.display().to_string()]].concat());
        assert_eq!(said.code, Some(0), "{protocol:?} {said:?}");
        assert_eq!(std::fs::read(&back).unwrap(), bytes);
    }
    let said = world.client("scp", &["box@127.0.0.1:absent", &down.display().to_string()]);
    assert!(said.code == Some(1) && said.err.contains("No such file"), "{said:?}");
}

fn tree(dir: &Path) {
    std::fs::create_dir_all(dir.join("a/b")).unwrap();
    for (name, length) in [("a/one", 10), ("a/b/two", 400_000), ("three", 0)] {
        std::fs::write(dir.join(name), content(length)).unwrap();
    }
    for n in 0..200 {
        std::fs::write(dir.join(format!("a/b/small{n}")), format!("{n}")).unwrap();
    }
}

fn same(a: &Path, b: &Path) {
    run("diff", &["-r", &a.display().to_string(), &b.display().to_string()]);
}

#[test]
fn rsync_and_tar() {
    let world = World::new();
    let here = world.host.path("tree");
    tree(&here);
    let shell: Vec<String> = world.options().iter().map(|word| format!("'{word}'")).collect();
    let shell = format!("ssh {}", shell.join(" "));
    let sync = |from: &str, to: &str| {
        let output = Command::new("rsync").args(["-a", "--stats", "-e", &shell, from, to]).output();
        let said = Said::from(output.expect("the package rsync is installed"));
        assert_eq!(said.code, Some(0), "{said:?}");
        said.out
    };
    let from = format!("{}/", here.display());
    sync(&from, "box@127.0.0.1:tree/");
    same(&here, &world.home("tree"));
    std::fs::write(here.join("a/one"), "changed").unwrap();
    let again = sync(&from, "box@127.0.0.1:tree/");
    assert!(again.contains("regular files transferred: 1\n"), "{again}");
    let back = world.host.path("tree2");
    sync("box@127.0.0.1:tree/", &format!("{}/", back.display()));
    same(&here, &back);

    let mut tar = Command::new("tar").args(["-C", &from, "-cf", "-", "."]).stdout(Stdio::piped()).spawn().unwrap();
    let mut ssh = world.ssh(&[]);
    ssh.arg("mkdir tarred && tar -C tarred -xf - && echo done").stdin(tar.stdout.take().unwrap());
    let said = Said::from(ssh.output().unwrap());
    assert_eq!((said.code, said.out.as_str()), (Some(0), "done\n"), "{said:?}");
    assert!(tar.wait().unwrap().success());
    same(&here, &world.home("tarred"));
}
