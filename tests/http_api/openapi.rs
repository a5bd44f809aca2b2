//! The API's own description.

use serde_json::Value;

use super::common::Host;

#[test]
fn the_description_is_valid_and_lists_every_route() {
    let host = Host::new();
    let _runner = host.runner();
    let document = host.http().with_token("").get("/openapi.json").json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(!references.is_empty());
    for reference in references {
        let pointer = reference.strip_prefix('#').expect("all references are local");
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    let described: Vec<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |method| (method.clone(), path.clone())))
        .collect();
    let expected = [
        ("get", "/"),
        ("get", "/info"),
        ("get", "/openapi.json"),
        ("get", "/sandboxes"),
        ("post", "/sandboxes"),
        ("get", "/sandboxes/{id}"),
        ("delete", "/sandboxes/{id}"),
        ("post", "/sandboxes/{id}/start"),
        ("post", "/sandboxes/{id}/stop"),
        ("post", "/sandboxes/{id}/destroy"),
        ("post", "/sandboxes/{id}/fork"),
        ("post", "/sandboxes/{id}/clone"),
        ("post", "/sandboxes/{id}/pause"),
        ("post", "/sandboxes/{id}/resume"),
        ("post", "/sandboxes/{id}/resize"),
        ("post", "/snapshots/create"),
        ("get", "/snapshots/exists"),
        ("get", "/snapshots/info"),
        ("post", "/snapshots/remove"),
        ("get", "/sandboxes/{id}/serial"),
        ("get", "/ledger"),
        ("post", "/ledger/repair"),
        ("get", "/sandboxes/{id}/toolbox/{path}"),
        ("get", "/sandboxes/{id}/proxy/{port}/{path}"),
    ];
    for (method, path) in expected {
        assert!(described.contains(&(method.to_owned(), path.to_owned())), "{method} {path} is not described");
    }
    for (method, path) in described {
        every_parameter_is_described(&document["paths"][&path][&method], &path);
        // And every described route is there.
        let path = path.replace("{id}", "box").replace("{port}", "8080").replace("{path}", "x");
        let answer = host.http().request(&method.to_uppercase(), &path, "");
        assert!(answer.status != 405 && !answer.body.contains("/openapi.json lists"), "{method} {path}: {answer:?}");
    }
}

fn collect(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            references.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| collect(value, references));
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, references)),
        _ => {}
    }
}

#[track_caller]
fn every_parameter_is_described(operation: &Value, path: &str) {
    assert!(operation["responses"].as_object().is_some_and(|responses| !responses.is_empty()), "{path}");
    let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    let described = |name: &str| parameters.iter().any(|found| found["name"] == name && found["in"] == "path");
    for name in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
        assert!(described(name), "{name} of {path} is not described");
    }
}
