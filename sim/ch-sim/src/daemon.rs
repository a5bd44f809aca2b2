//! The process: umask, signals, socket and lock file, threads, exit code (cloud-hypervisor.md 3).

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::stat::{Mode, umask};

use crate::api::{Answer, Api, Call};
use crate::cli::{self, ApiSocket, Options, Refusal};
use crate::config::{MemoryRestoreMode, RestoreConfig};
use crate::context::Context;
use crate::disk::try_lock_file;
use crate::error::{Chain, Outcome};
use crate::events::Events;
use crate::faults::Faults;
use crate::http::{Server, StopHandle};
use crate::log::Log;
use crate::version::Version;
use crate::vmm::{End, Message, Vmm};

/// Runs the program with these arguments; returns its exit code.
pub fn run(args: &[String]) -> i32 {
    umask(Mode::from_bits_truncate(0o077));
    let version = match Version::from_env() {
        Ok(version) => version,
        Err(error) => {
            eprintln!("error: {error}");
            return 2;
        }
    };
    let options = match cli::parse(args, version) {
        Ok(options) => options,
        Err(Refusal::Usage(text)) => {
            eprintln!("{text}\n\nFor more information, try '--help'.");
            return 2;
        }
        Err(Refusal::Value(texts)) => return fail(&texts),
    };
    if options.version {
        print_version(version);
        return 0;
    }
    match start(&options, version) {
        Ok(()) => 0,
        Err(chain) => fail(chain.texts()),
    }
}

fn print_version(version: Version) {
    println!("cloud-hypervisor {}", version.build());
    if version.lists_protocols() {
        println!("Migration Protocol Versions: 0, 1");
    }
}

/// Prints a chain of errors as the program does; returns exit code 1.
fn fail(texts: &[String]) -> i32 {
    eprint!("Error: Cloud Hypervisor exited with the following ");
    match texts {
        [only] => eprintln!("error:\n  {only}"),
        texts => {
            eprintln!("chain of errors:");
            for (level, text) in texts.iter().enumerate() {
                eprintln!("  {level}: {text}");
            }
        }
    }
    1
}

/// Name of the sandbox: the socket's file name without its suffix.
fn sandbox_name(options: &Options) -> String {
    let path = match &options.api_socket {
        Some(ApiSocket::Path(path)) => Path::new(path),
        _ => return String::new(),
    };
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn start(options: &Options, version: Version) -> Outcome<()> {
    let log = Log::open(options.log_file.as_deref(), options.verbosity)
        .map_err(|error| Chain::io("Error creating log file", &error))?;
    let faults = Faults::from_env(sandbox_name(options));
    // Failures make no sense here; delays, crashes and exits do.
    let _ = faults.strike("spawn");
    let signals = block_signals()?;
    let events = Events::open(options.event_monitor.as_ref())
        .map_err(|error| Chain::io("Error doing event monitor I/O", &error))?;
    log.info(&format!("Cloud Hypervisor {} starting", version.build()));
    events.emit("vmm", "starting");
    let context = Arc::new(Context { version, log, events, faults });
    let (messages, inbox) = channel();
    let listener =
        listen(options.api_socket.as_ref(), version).map_err(|chain| chain.under("Failed to start the VMM thread"))?;
    let (http, _lock) = match listener {
        Some((listener, lock)) => (Some(serve(listener, messages.clone(), version)?), lock),
        None => (None, None),
    };
    watch_signals(signals, messages.clone())?;
    let restored = options.restore.as_deref().map(|text| {
        let config = restore_options(text);
        request(&messages, Call::Restore(config))
    });
    let mut vmm = Vmm::new(Arc::clone(&context), options.no_shutdown, messages);
    let end = vmm.run(&inbox);
    drop(vmm);
    if let Some((stop, thread)) = http {
        stop.stop();
        // A panic of the thread was printed by it; the end is orderly all the same.
        let _ = thread.join();
    }
    let restored = restored.and_then(|answer| answer.try_recv().ok());
    if let Some(Err(chain)) = restored {
        return Err(chain.under("Error restoring VM"));
    }
    if let End::FailedReboot(chain) = end {
        return Err(chain.under("Error rebooting VM").under("VMM thread exited with error"));
    }
    if let Some(ApiSocket::Path(path)) = &options.api_socket {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(path);
    }
    context.log.info("Cloud Hypervisor exited successfully");
    Ok(())
}

/// Hands a call to the executor, which ends the process when it fails.
fn request(messages: &Sender<Message>, call: Call) -> std::sync::mpsc::Receiver<Answer> {
    let (reply, answer) = channel();
    let (outer, own) = (messages.clone(), channel::<Answer>());
    // The receiver of the executor outlives this call.
    let _ = messages.send(Message::Call { call, reply });
    std::thread::spawn(move || {
        if let Ok(result) = answer.recv() {
            let failed = result.is_err();
            let _ = own.0.send(result);
            if failed {
                let _ = outer.send(Message::Terminate);
            }
        }
    });
    own.1
}

/// `source_url=...,prefault=on|off,memory_restore_mode=copy|ondemand,resume=true|false`
fn restore_options(text: &str) -> RestoreConfig {
    let on = |key| cli::member(text, key).is_some_and(|value| value == "on" || value == "true");
    RestoreConfig {
        source_url: cli::member(text, "source_url").unwrap_or(text).to_owned(),
        prefault: on("prefault"),
        memory_restore_mode: match cli::member(text, "memory_restore_mode") {
            Some("ondemand") => MemoryRestoreMode::OnDemand,
            _ => MemoryRestoreMode::Copy,
        },
        net_fds: None,
        resume: on("resume"),
    }
}

/// Opens the API socket; from v53 on under a lock that another instance may hold.
fn listen(socket: Option<&ApiSocket>, version: Version) -> Outcome<Option<(UnixListener, Option<File>)>> {
    let failed = |error: &std::io::Error| Chain::io("Error creation API server's socket", error);
    match socket {
        None => Ok(None),
        Some(ApiSocket::Fd(fd)) => {
            // SAFETY: the caller of the process handed this descriptor over; nothing else here uses it.
            let fd = unsafe { OwnedFd::from_raw_fd(*fd) };
            nix::sys::stat::fstat(fd.as_fd()).map_err(|errno| failed(&errno.into()))?;
            Ok(Some((fd.into(), None)))
        }
        Some(ApiSocket::Path(path)) => {
            let lock = match version.socket_lock() {
                true => Some(take_socket_lock(path)?),
                false => None,
            };
            if lock.is_some() {
                // Whatever is there is stale; a directory stays and makes the bind fail.
                let _ = std::fs::remove_file(path);
            }
            let listener = UnixListener::bind(path).map_err(|error| failed(&error))?;
            Ok(Some((listener, lock)))
        }
    }
}

fn take_socket_lock(path: &str) -> Outcome<File> {
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(format!("{path}.lock"));
    let file = opened.map_err(|error| Chain::io("Error creation API server's socket", &error))?;
    try_lock_file(&file, libc::F_WRLCK, 0).map_err(|chain| {
        if chain.texts() == ["The file is already locked"] {
            return Chain::new(format!("API socket {path:?} is already in use by another running instance"));
        }
        chain
    })?;
    Ok(file)
}

fn serve(listener: UnixListener, messages: Sender<Message>, version: Version) -> Outcome<(StopHandle, JoinHandle<()>)> {
    let failed = |error: &std::io::Error| Chain::io("Error spawning HTTP thread", error);
    let server = Server::new(listener).map_err(|error| failed(&error))?;
    let stop = server.stop_handle();
    let api = Api::new(messages, version);
    let thread = std::thread::Builder::new()
        .name("http-server".to_owned())
        .spawn(move || {
            if let Err(error) = server.run(|request| api.answer(request)) {
                eprintln!("HTTP server error: {error}");
            }
        })
        .map_err(|error| failed(&error))?;
    Ok((stop, thread))
}

/// Blocks the signals that end the process in order, before any thread starts.
fn block_signals() -> Outcome<SigSet> {
    let failed = |errno| Chain::errno("Cannot spawn a signal handler thread", errno);
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block().map_err(failed)?;
    // SAFETY: only sets the disposition to "ignore".
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.map_err(failed)?;
    Ok(signals)
}

fn watch_signals(signals: SigSet, messages: Sender<Message>) -> Outcome<()> {
    let spawned = std::thread::Builder::new().name("vmm_signal_handler".to_owned()).spawn(move || {
        while signals.wait().is_ok() {
            if messages.send(Message::Terminate).is_err() {
                return;
            }
        }
    });
    let failed = |error: std::io::Error| Chain::io("Cannot spawn a signal handler thread", &error);
    spawned.map(drop).map_err(failed)
}
