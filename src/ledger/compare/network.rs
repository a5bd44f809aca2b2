//! Namespaces, host links and rules.

use super::{Claim, NOBODY, STOPPED, claim, leaked, missing, restart, wrong};
use crate::ids::SandboxId;
use crate::ledger::{Alive, Difference, Expected, Kind, Remedy, Sandbox, What};
use crate::net::survey::{Maker, NamespaceSeen, Naming, NetworkSurvey};

pub(super) fn compare(expected: &Expected, survey: &NetworkSurvey, found: &mut Vec<Difference>) {
    for seen in &survey.namespaces {
        namespace(expected, seen, found);
    }
    for seen in survey.links.iter().filter(|seen| seen.maker == Maker::Us) {
        let why = match claim(expected, &seen.sandbox) {
            Claim::LeftOut => continue,
            Claim::Rests(Sandbox { alive: Some(alive), .. }) if alive.link.as_str() == seen.name => continue,
            Claim::Rests(Sandbox { alive: Some(alive), .. }) => format!("its sandbox has {}", alive.link),
            Claim::Rests(_) => STOPPED.to_owned(),
            Claim::Nobody => NOBODY.to_owned(),
        };
        let remedy = Remedy::RemoveLink { name: seen.name.clone() };
        found.push(leaked(Kind::Link, &seen.name, Some(&seen.sandbox), why, remedy));
    }
    for (id, sandbox) in expected.at_rest() {
        if let Some(alive) = &sandbox.alive {
            living(id, alive, survey, found);
        }
    }
    host(survey, found);
}

fn host(survey: &NetworkSurvey, found: &mut Vec<Difference>) {
    let of_host = |kind, what, object: String, why: String, remedy| Difference {
        kind,
        what,
        object,
        sandbox: None,
        why,
        remedy,
        harmless: true,
    };
    let (bridge, there) = &survey.bridge;
    if !there {
        let advice = "restart the runner, which makes the bridge; then stop and start the sandboxes";
        let why = "the sandboxes' links are ports of it".to_owned();
        let object = format!("bridge {bridge}");
        found.push(of_host(Kind::Link, What::Missing, object, why, Remedy::advice(advice)));
    }
    let (is, made) = (survey.host_rules, survey.host_rules_made);
    if *there && is < made {
        let what = if is == 0 { What::Missing } else { What::Wrong };
        let why = format!("{is} of {made} rules are there: sandboxes may reach what they must not");
        found.push(of_host(Kind::Rules, what, "the host's nftables table".to_owned(), why, Remedy::PrepareHost));
    }
}

fn namespace(expected: &Expected, seen: &NamespaceSeen, found: &mut Vec<Difference>) {
    let name = seen.name.as_str();
    if seen.naming == Naming::Plain {
        return plain(expected, seen, found);
    }
    let Some(id) = seen.sandbox.as_ref().filter(|_| seen.maker != Maker::Another) else { return };
    let why = match claim(expected, id) {
        Claim::LeftOut => return,
        Claim::Rests(Sandbox { alive: Some(alive), .. }) if alive.netns == seen.name => return,
        Claim::Rests(Sandbox { alive: Some(alive), .. }) => format!("its sandbox has {}", alive.netns),
        Claim::Rests(_) => STOPPED.to_owned(),
        Claim::Nobody => NOBODY.to_owned(),
    };
    let remedy = match seen.maker {
        Maker::Us => Remedy::RemoveNamespace { name: seen.name.clone() },
        _ => Remedy::advice(format!(
            "nothing proves which runner made it; if there is no other one on this host: ip netns delete {name}"
        )),
    };
    found.push(leaked(Kind::Namespace, name, Some(id), why, remedy));
}

/// A plain file carries no mark: it is only spoken of where the name is that of a sandbox which is at rest without
/// network.
fn plain(expected: &Expected, seen: &NamespaceSeen, found: &mut Vec<Difference>) {
    let Some(id) = seen.name.as_str().strip_prefix("ns-").and_then(|id| id.parse::<SandboxId>().ok()) else { return };
    if let Claim::Rests(Sandbox { alive: None, .. }) = claim(expected, &id) {
        let why = format!("it is a plain file where its sandbox once had a namespace, and {STOPPED}");
        let remedy = Remedy::RemoveNamespace { name: seen.name.clone() };
        found.push(leaked(Kind::Mount, format!("/run/netns/{}", seen.name), Some(&id), why, remedy));
    }
}

fn living(id: &SandboxId, alive: &Alive, survey: &NetworkSurvey, found: &mut Vec<Difference>) {
    let name = alive.netns.as_str();
    if !survey.links.iter().any(|seen| seen.name == alive.link.as_str() && seen.sandbox == *id) {
        let why = "it runs, and the host has no link to it";
        found.push(missing(Kind::Link, alive.link.as_str(), id, why, restart(id)));
    }
    if survey.unread.iter().any(|line| line.contains(&format!("namespace {name}:"))) {
        return;
    }
    let seen = match survey.namespaces.iter().find(|seen| seen.name == alive.netns) {
        Some(seen) if seen.naming != Naming::Plain && seen.sandbox.as_ref() == Some(id) => seen,
        Some(seen) if seen.naming != Naming::Plain => {
            let why = "it runs, and what has the name of its namespace carries the mark of another sandbox";
            return found.push(wrong(Kind::Namespace, name, id, why, restart(id)));
        }
        _ => {
            let why = "it runs, and its namespace has no name any more; the VMM keeps it alive";
            return found.push(missing(Kind::Namespace, name, id, why, restart(id)));
        }
    };
    if let Naming::Stacked(times) = seen.naming {
        let why = format!("{times} namespaces are mounted one over the other under this name");
        found.push(wrong(Kind::Mount, format!("/run/netns/{name}"), id, why, restart(id)));
    }
    if !seen.tap {
        let why = "it runs, and the TAP of its guest is not there";
        found.push(missing(Kind::Tap, format!("tap0 in {name}"), id, why, restart(id)));
    }
    for tap in &seen.other_taps {
        let why = "a sandbox's namespace has one TAP, tap0";
        let remedy = Remedy::advice(format!("nothing marks it as ours: ip -n {name} link delete {tap}"));
        found.push(wrong(Kind::Tap, format!("{tap} in {name}"), id, why, remedy));
    }
    if seen.rules < alive.rules {
        let (is, made) = (seen.rules, alive.rules);
        let object = format!("the nftables table in {name}");
        let why = format!("{is} of {made} rules are there: its guest may reach what it must not");
        let what = if is == 0 { What::Missing } else { What::Wrong };
        found.push(Difference { what, ..wrong(Kind::Rules, object, id, why, restart(id)) });
    }
}
