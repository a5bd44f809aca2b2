//! The way to a guest that may have to be waited for: a sandbox that is paused, being started or being
//! looked at after a start of the runner will often be there in a moment.

use futures::future::select;
use tokio::time::{Instant, timeout_at};

use super::{Proxy, about};
use crate::actors::proxy::Route;
use crate::http::error::Problem;
use crate::http::sandboxes;
use crate::ids::SandboxId;
use crate::messages::supervisor::Order;
use crate::sandbox::{Ask, View, WireState};

/// What to do about a sandbox that cannot be reached at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It may come: wait, for this reason.
    Wait(&'static str),
    /// It rests, and a request may start it.
    Start,
    /// It rests.
    Rests,
    /// There is none.
    Missing,
}

fn verdict(view: Option<&View>, recovered: bool, autostart: bool) -> Verdict {
    let Some(view) = view else {
        return if recovered {
            Verdict::Missing
        } else {
            Verdict::Wait("the runner is still recovering its sandboxes")
        };
    };
    match view.state {
        WireState::Creating => Verdict::Wait("it is being created"),
        WireState::Starting => Verdict::Wait("it is being started"),
        WireState::Started => Verdict::Wait("its VMM is being exchanged, or its network opened"),
        WireState::Paused => Verdict::Wait("it is paused; POST /sandboxes/{id}/resume lets it go on"),
        WireState::Unknown => Verdict::Wait("the host could not be asked about it yet"),
        WireState::Stopping if autostart => Verdict::Wait("it is being stopped"),
        WireState::Stopped if autostart => Verdict::Start,
        WireState::Stopping | WireState::Stopped | WireState::Destroying | WireState::Error => Verdict::Rests,
        WireState::Destroyed => Verdict::Missing,
    }
}

impl Proxy {
    /// The route to a sandbox, now or within the time that a request may wait.
    pub(super) async fn way(&self, id: &SandboxId) -> Result<Route, Problem> {
        match self.state.routes.get(id).filter(|route| !route.is_held()) {
            Some(route) => Ok(route),
            None => self.wait(id).await,
        }
    }

    async fn wait(&self, id: &SandboxId) -> Result<Route, Problem> {
        let deadline = Instant::now() + self.limits.wait;
        let mut started = false;
        loop {
            // Listened to before the look, so that no change falls between.
            let change = select(Box::pin(self.state.routes.change()), Box::pin(self.state.views.change()));
            let route = self.state.routes.get(id);
            let held = route.as_ref().is_some_and(Route::is_held);
            if let Some(route) = route.filter(|_| !held) {
                return Ok(route);
            }
            let view = self.state.views.get(id);
            let verdict = verdict(view.as_deref(), self.state.recovered.get(), self.limits.autostart && !started);
            let why = match verdict {
                Verdict::Wait(why) => why,
                Verdict::Start => {
                    started = true;
                    self.start(id).await?;
                    continue;
                }
                Verdict::Rests => return Err(rests(id, view.as_deref())),
                Verdict::Missing => {
                    return Err(Problem::new(404, "NOT_FOUND", about(id, "it does not exist on this host")));
                }
            };
            if timeout_at(deadline, change).await.is_err() {
                let seconds = self.limits.wait.as_secs_f64();
                let why = why.replace("{id}", id.as_str());
                let message = format!("it could not be reached within {seconds} s (RUNNER_PROXY_WAIT_SEC): {why}");
                return Err(Problem::new(503, "UNAVAILABLE", about(id, &message)));
            }
        }
    }

    /// Starts it as its owner would; all who wait for it join the same start.
    async fn start(&self, id: &SandboxId) -> Result<(), Problem> {
        self.state.work.takes_work()?;
        sandboxes::order(&self.state, Order::new(id.clone(), Ask::Start)).await?;
        Ok(())
    }
}

fn rests(id: &SandboxId, view: Option<&View>) -> Problem {
    let state = view.and_then(|view| serde_json::to_value(view.state).ok());
    let state = state.as_ref().and_then(|state| state.as_str()).unwrap_or_default();
    let message = format!("sandbox {id} has no address (it is {state}). Is the Sandbox started?");
    Problem::new(400, "BAD_REQUEST", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for() {
        let at = |state, autostart| {
            let view = View { state, ..View::unreadable("box".parse().unwrap(), String::new()) };
            verdict(Some(&view), true, autostart)
        };
        for state in
            [WireState::Creating, WireState::Starting, WireState::Started, WireState::Paused, WireState::Unknown]
        {
            assert!(matches!(at(state, false), Verdict::Wait(_)), "{state:?}");
            assert!(matches!(at(state, true), Verdict::Wait(_)), "{state:?}");
        }
        for state in [WireState::Stopping, WireState::Stopped, WireState::Destroying, WireState::Error] {
            assert_eq!(at(state, false), Verdict::Rests, "{state:?}");
        }
        assert_eq!(at(WireState::Stopped, true), Verdict::Start);
        assert!(matches!(at(WireState::Stopping, true), Verdict::Wait(_)));
        assert_eq!(at(WireState::Error, true), Verdict::Rests);
        assert_eq!(verdict(None, true, true), Verdict::Missing);
        assert!(matches!(verdict(None, false, false), Verdict::Wait(_)));
    }
}
