use super::*;

#[test]
fn an_api_error_keeps_the_hypervisors_words() {
    let words = ["Error from API", "The VM could not boot", "VM is already created"];
    let error = Error::Api {
        call: "vm.boot",
        socket: "/s/a.sock".into(),
        status: 500,
        words: words.map(str::to_owned).to_vec(),
    };
    assert!(error.says("already created"));
    let failure = Failure::from(error);
    assert_eq!(
        failure.message,
        "vm.boot on /s/a.sock answered 500: Error from API: The VM could not boot: VM is already created"
    );
    assert_eq!((failure.code, failure.certainty), (ErrorCode::Internal, Certainty::NotDone));
}

#[test]
fn a_missing_binary_names_the_setting() {
    let error = Error::Binary { path: "/opt/ch".into(), source: io::Error::from_raw_os_error(2) };
    let failure = Failure::from(error);
    assert!(failure.message.contains("CH_BINARY"), "{failure}");
    assert!(failure.message.contains("/opt/ch"), "{failure}");
    assert!(failure.message.contains("No such file"), "{failure}");
}

#[test]
fn only_a_request_that_was_sent_is_uncertain() {
    let deadline = |sent| Error::Deadline { call: "vm.boot", socket: "/s".into(), limit: Duration::from_secs(1), sent };
    assert_eq!(deadline(true).certainty(), Certainty::Unknown);
    assert_eq!(deadline(false).certainty(), Certainty::NotDone);
    assert_eq!(deadline(true).code(), ErrorCode::Timeout);
}
