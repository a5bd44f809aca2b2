//! Requests whose end client, proxy and guest could see at different places.

use super::table::{Case, Want, case, get, post, run, smuggled};
use super::{BAD, with_origin};

/// `5`, `hello`, and the last chunk.
const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";

#[test]
fn lengths() {
    let (host, _runner, origin) = with_origin();
    let two = |first: &str, second: &str| format!("Content-Length: {first}\r\nContent-Length: {second}\r\n");
    let one = |value: &str| format!("Content-Length: {value}\r\n");
    let mut cases = vec![
        case("a length", post(&one("5"), "hello"), Want::Passed(b"hello".to_vec())),
        case("two lengths, 5 and 5", post(&two("5", "5"), "hello"), Want::Either(BAD, b"hello".to_vec())),
        case("two lengths, 5 and 6", post(&two("5", "6"), "hello1"), Want::Refused(BAD)),
        case("two lengths, 0 and N", post(&two("0", "200"), &smuggled()), Want::Refused(BAD)),
        case("two lengths, N and 0", post(&two("200", "0"), &smuggled()), Want::Refused(BAD)),
        case("length 05", post(&one("05"), "hello"), Want::Either(BAD, b"hello".to_vec())),
        case("length 5, 5", post(&one("5, 5"), "hello"), Want::Either(BAD, b"hello".to_vec())),
    ];
    let bad = [
        "5, 6",
        "+5",
        "-1",
        "-0",
        "0x5",
        "5 5",
        "5_0",
        "5.0",
        "5e0",
        "5;",
        "\"5\"",
        "",
        " ",
        ",",
        "5,",
        "five",
        "\u{0665}",
        "5\u{0b}",
        "\u{0c}5",
        "18446744073709551616",
        "99999999999999999999999999",
    ];
    for value in bad {
        cases.push(case(format!("length {value:?}"), post(&one(value), "hello"), Want::Refused(BAD)));
    }
    for name in ["Content-Length ", "Content-Length\t", "Content_Length\r\n ", " Content-Length", "Content\u{0}-Length"]
    {
        let header = format!("{name}: {}\r\n", smuggled().len());
        cases.push(case(format!("{name:?}"), post(&header, &smuggled()), Want::Refused(BAD)));
    }
    // Longer than anything could be, and two that are special numbers in some programs.
    for value in ["9223372036854775808", "18446744073709551614", "18446744073709551615"] {
        cases.push(case(format!("length {value}"), post(&one(value), ""), Want::Nothing));
    }
    run(&host, &origin, cases);
}

#[test]
fn length_and_coding_at_once() {
    let (host, _runner, origin) = with_origin();
    let chunks_and_more = format!("{CHUNKS}{}", smuggled());
    let all = |coding: &str, length: usize| format!("Content-Length: {length}\r\nTransfer-Encoding: {coding}\r\n");
    let reversed = |length: usize| format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n");
    // By the coding alone, or not at all; and nothing after it (RFC 9112, 6.1).
    let hello = || Want::EitherEnds(BAD, b"hello".to_vec());
    let nothing = || Want::EitherEnds(BAD, Vec::new());
    let empty_and_more = format!("0\r\n\r\n{}", smuggled());
    run(
        &host,
        &origin,
        vec![
            case("CL.TE, consistent", post(&all("chunked", CHUNKS.len()), CHUNKS), hello()),
            case("CL.TE, length covers more", post(&all("chunked", chunks_and_more.len()), &chunks_and_more), hello()),
            case("CL.TE, length 0", post(&all("chunked", 0), CHUNKS), hello()),
            case("CL.TE, empty body and more", post(&all("chunked", empty_and_more.len()), &empty_and_more), nothing()),
            case("TE.CL, length 4", post(&reversed(4), CHUNKS), hello()),
            case("TE.CL, length covers more", post(&reversed(chunks_and_more.len()), &chunks_and_more), hello()),
            case("TE.CL in a GET", get(&reversed(0)).replace("\r\n\r\n", &format!("\r\n\r\n{CHUNKS}")), hello()),
            case(
                "two lengths and a coding",
                post(&format!("Content-Length: 0\r\n{}", all("chunked", 4)), CHUNKS),
                hello(),
            ),
        ],
    );
}

#[test]
fn codings() {
    let (host, _runner, origin) = with_origin();
    let coded = |value: &str| post(&format!("Transfer-Encoding:{value}\r\n"), &format!("{CHUNKS}{}", smuggled()));
    let alone = |value: &str| post(&format!("Transfer-Encoding:{value}\r\n"), CHUNKS);
    // A server that does not know a coding says 501 (RFC 9112, 6.1).
    const UNKNOWN: &[u16] = &[400, 501];
    let mut cases: Vec<Case> = vec![];
    for value in [" chunked", " chunKed", "\tchunked", " \t chunked \t", "chunked"] {
        cases.push(case(format!("coding {value:?}"), alone(value), Want::Passed(b"hello".to_vec())));
    }
    for value in [" ,chunked", " chunked,", " , chunked , "] {
        cases.push(case(format!("coding {value:?}"), alone(value), Want::Either(UNKNOWN, b"hello".to_vec())));
    }
    let refused = [
        " chunked, identity",
        " identity, chunked",
        " chunked, gzip",
        " gzip, chunked",
        " gzip",
        " identity",
        " xchunked",
        " chunkedx",
        " chunked x",
        " x chunked",
        " \"chunked\"",
        " 'chunked'",
        " chunked;x=1",
        " chunked, chunked",
        " chunk",
        " chunked\u{0}",
        " \u{0b}chunked",
        " \u{0c}chunked",
        " chunked\u{a0}",
        " ch\u{fc}nked",
        "",
        " ",
        " ,",
        " chunked\u{1f}",
    ];
    for value in refused {
        cases.push(case(format!("coding {value:?}"), coded(value), Want::Refused(UNKNOWN)));
    }
    let lines = [
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        "Transfer-Encoding\u{0b}: chunked\r\n",
        " Transfer-Encoding: chunked\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
        "Transfer\u{0}-Encoding: chunked\r\n",
        "Transfer Encoding: chunked\r\n",
    ];
    for line in lines {
        let bytes = post(line, &format!("{CHUNKS}{}", smuggled()));
        cases.push(case(format!("{line:?}"), bytes, Want::Refused(UNKNOWN)));
    }
    let folded = post("Transfer-Encoding:\r\n chunked\r\n", CHUNKS);
    cases.push(case("a folded coding", folded, Want::Either(UNKNOWN, b"hello".to_vec())));
    // Some servers take _ for -: the length is what counts, and the body must be its.
    let underscore = post("Transfer_Encoding: chunked\r\nContent-Length: 15\r\n", CHUNKS);
    cases.push(case("Transfer_Encoding", underscore, Want::Either(UNKNOWN, CHUNKS.as_bytes().to_vec())));
    // HTTP/1.0 has no codings (RFC 9112, 6.1): faulty, and the connection ends.
    let old = alone(" chunked").replace("HTTP/1.1", "HTTP/1.0");
    cases.push(case("chunked in HTTP/1.0", old, Want::EitherEnds(UNKNOWN, b"hello".to_vec())));
    run(&host, &origin, cases);
}

#[test]
fn chunks() {
    let (host, _runner, origin) = with_origin();
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    let hello = || Want::Passed(b"hello".to_vec());
    let maybe = || Want::Either(&[400, 0], b"hello".to_vec());
    // What the body is worth shows when the head is long on its way, so the end may be all there is.
    let broken = || Want::Refused(&[400, 413, 0]);
    let mut cases = vec![
        case("chunks", chunked("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), hello()),
        case("size in capitals", chunked("A\r\n0123456789\r\n0\r\n\r\n"), Want::Passed(b"0123456789".to_vec())),
        case("size with zeros", chunked("0005\r\nhello\r\n000\r\n\r\n"), hello()),
        case("an extension", chunked("5;name=value\r\nhello\r\n0;last\r\n\r\n"), hello()),
        case("a quoted extension", chunked("5;name=\"v;a l\"\r\nhello\r\n0\r\n\r\n"), hello()),
        case("a space behind the size", chunked("5 \r\nhello\r\n0\r\n\r\n"), maybe()),
        case("a space before the extension", chunked("5 ;a=b\r\nhello\r\n0\r\n\r\n"), maybe()),
        case("bare LF behind sizes", chunked("5\nhello\r\n0\r\n\r\n"), maybe()),
        case("bare LF in an extension", chunked("5;a\nhello\r\n0\r\n\r\n"), broken()),
        case("CR in an extension", chunked("5;a\rb\r\nhello\r\n0\r\n\r\n"), broken()),
        case("an extension of 64 KiB", chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(64 << 10))), maybe()),
        case(
            "10,000 extensions",
            chunked(&format!("{}0\r\n\r\n", "1;abcdefgh=ijklmnop\r\nx\r\n".repeat(10_000))),
            Want::Either(&[400, 0], vec![b'x'; 10_000]),
        ),
        case("bytes behind a chunk", chunked("5\r\nhelloXX\r\n0\r\n\r\n"), broken()),
        case("no end of a chunk", chunked("5\r\nhello0\r\n\r\n"), broken()),
        case("LF ends a chunk", chunked("5\r\nhello\n0\r\n\r\n"), broken()),
        case("CR ends a chunk", chunked("5\r\nhello\r0\r\n\r\n"), broken()),
        case("two lines end a chunk", chunked("5\r\nhello\r\n\r\n0\r\n\r\n"), broken()),
        case("the last chunk ends by LF", chunked("5\r\nhello\r\n0\n\n"), maybe()),
        case("trailers", chunked("5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"), hello()),
        case("a trailer without colon", chunked("5\r\nhello\r\n0\r\nX-Sum\r\n\r\n"), broken()),
        case(
            "trailers of 1 MiB",
            chunked(&format!("5\r\nhello\r\n0\r\nX: {}\r\n\r\n", "a".repeat(1 << 20))),
            Want::Refused(&[400, 413, 431, 0]),
        ),
    ];
    let sizes = [
        "FFFFFFFFFFFFFFFFF",
        "10000000000000000",
        "100000000000000005",
        "-5",
        "+5",
        "0x5",
        " 5",
        "\t5",
        "5_",
        "_5",
        "5_0",
        "5.0",
        "5,",
        "five",
        "",
        "g",
        "5 5",
        "5\u{0}",
        "\u{0b}5",
        "\"5\"",
        "5:",
        "5\u{a0}",
    ];
    for size in sizes {
        cases.push(case(format!("chunk size {size:?}"), chunked(&format!("{size}\r\nhello\r\n0\r\n\r\n")), broken()));
    }
    for size in ["FFFFFFFFFFFFFFFF", "FFFFFFFFFFFFFFFE", "7FFFFFFFFFFFFFFF"] {
        cases.push(case(
            format!("chunk size {size:?}"),
            chunked(&format!("{size}\r\nhello\r\n0\r\n\r\n")),
            Want::Nothing,
        ));
    }
    run(&host, &origin, cases);
}
