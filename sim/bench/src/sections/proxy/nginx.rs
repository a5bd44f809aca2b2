//! nginx processes of the benchmark's own: each with its own directory and configuration.

use std::fs::File;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::isolate::until;

const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// Ends with its workers when dropped.
pub struct Nginx {
    child: Child,
    workers: usize,
}

impl Nginx {
    /// The guest's server: 96 bytes at `/small`, so many at `/large`.
    pub fn guest(dir: &Path, netns: &str, large: u64, workers: usize) -> anyhow::Result<Self> {
        std::fs::write(dir.join("small"), [b'x'; 96]).context("cannot write the small file")?;
        File::create(dir.join("large")).and_then(|file| file.set_len(large)).context("cannot make the large file")?;
        let http = format!(
            "sendfile on; keepalive_requests 100000000;
             server {{ listen 0.0.0.0:2280; root {}; }}",
            dir.display()
        );
        Self::start(dir, Some(netns), workers, &http, None)
    }

    /// A proxy to the guest's server at this address.
    pub fn proxy(
        dir: &Path,
        netns: Option<&str>,
        (address, port): (&str, u16),
        guest: &str,
        workers: usize,
    ) -> anyhow::Result<Self> {
        let http = format!(
            "keepalive_requests 100000000; proxy_http_version 1.1; proxy_set_header Connection \"\";
             client_max_body_size 0; proxy_request_buffering off; proxy_max_temp_file_size 0;
             upstream guest {{ server {guest}:2280; keepalive 256; keepalive_requests 100000000; }}
             server {{ listen {address}:{port} backlog=1024; location / {{ proxy_pass http://guest; }} }}"
        );
        Self::start(dir, netns, workers, &http, Some((address, port)))
    }

    fn start(
        dir: &Path,
        netns: Option<&str>,
        workers: usize,
        http: &str,
        listens: Option<(&str, u16)>,
    ) -> anyhow::Result<Self> {
        // Its workers give up root otherwise, and may not see the work directory.
        let config = format!(
            "daemon off; user root; pid {0}/pid; error_log {0}/error.log; worker_processes {workers};
             worker_rlimit_nofile 30000; events {{ worker_connections 12000; }}
             http {{ access_log off; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy;
             fastcgi_temp_path {0}/fastcgi; uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi;
             {http} }}",
            dir.display()
        );
        let file = dir.join("nginx.conf");
        std::fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
        let mut command = match netns {
            Some(netns) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", netns, "nginx"]);
                command
            }
            None => Command::new("nginx"),
        };
        command.arg("-p").arg(dir).arg("-c").arg(&file).arg("-e").arg(dir.join("error.log"));
        let child = command.stdin(Stdio::null()).spawn().context("cannot start nginx")?;
        let mut nginx = Self { child, workers };
        let log = dir.join("error.log");
        until("nginx serves", PATIENCE, LOOK, || {
            if let Some(status) = nginx.child.try_wait()? {
                bail!("nginx ended with {status}: {}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            let answers = listens.is_none_or(|address| TcpStream::connect(address).is_ok());
            Ok((answers && nginx.pids().is_ok()).then_some(()))
        })?;
        Ok(nginx)
    }

    /// Pids of its workers, once all are there.
    pub fn pids(&self) -> anyhow::Result<Vec<i32>> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let pids: Vec<i32> = text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        if pids.len() != self.workers {
            bail!("nginx has {} worker processes instead of {}", pids.len(), self.workers);
        }
        Ok(pids)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It takes its workers with it; errors mean that it has ended.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
