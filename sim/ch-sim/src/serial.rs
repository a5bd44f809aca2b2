//! Serial port, console and debug console: files are made and truncated, sockets bound (cloud-hypervisor.md 8).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use crate::config::{ConsoleOutputMode, VmConfig};
use crate::error::{Chain, Outcome};

/// Output kept for the first client of a socket, in bytes.
const BACKLOG_BYTES: usize = 256 << 10;

/// Where output of one port goes.
#[derive(Clone)]
enum Port {
    Nowhere,
    Stdout,
    File(Arc<File>),
    Socket(Arc<Listener>),
}

/// The ports of a VM, made before it (at create, boot, reboot and restore).
#[derive(Clone)]
pub struct Ports {
    serial: Port,
    console: Port,
}

/// A bound serial socket, unlinked on an orderly end.
struct Listener {
    socket: UnixListener,
    path: String,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Ports {
    /// Makes the files and sockets of all ports. The error is the text below "Error creating console devices".
    pub fn create(config: &VmConfig) -> Outcome<Self> {
        let console = &config.console.common;
        let console = port(console.mode, console.file.as_deref(), None)?;
        let serial = &config.serial.common;
        let serial = port(serial.mode, serial.file.as_deref(), serial.socket.as_deref())?;
        let debug = &config.debug_console;
        port(debug.mode, debug.file.as_deref(), None)?;
        Ok(Self { serial, console })
    }

    /// Writer for the guest's boot messages.
    pub fn writer(&self) -> Writer {
        Writer { ports: self.clone(), clients: Vec::new(), backlog: Vec::new() }
    }
}

fn port(mode: ConsoleOutputMode, file: Option<&str>, socket: Option<&str>) -> Outcome<Port> {
    let failed = |error: &io::Error| Chain::io("Error creating console device", error);
    let given = |path: Option<&str>| {
        let missing = || failed(&io::Error::from_raw_os_error(libc::ENOENT));
        path.map(str::to_owned).ok_or_else(missing)
    };
    Ok(match mode {
        ConsoleOutputMode::Off | ConsoleOutputMode::Null | ConsoleOutputMode::Pty => Port::Nowhere,
        ConsoleOutputMode::Tty => Port::Stdout,
        ConsoleOutputMode::File => {
            let made = File::create(given(file)?).map_err(|error| failed(&error))?;
            Port::File(Arc::new(made))
        }
        ConsoleOutputMode::Socket if socket.is_some() => {
            let path = given(socket)?;
            let socket = UnixListener::bind(&path).map_err(|error| failed(&error))?;
            socket.set_nonblocking(true).map_err(|error| failed(&error))?;
            Port::Socket(Arc::new(Listener { socket, path }))
        }
        ConsoleOutputMode::Socket => {
            return Err(Chain::new("No socket option support for console device"));
        }
    })
}

/// Writes lines to serial port and console.
pub struct Writer {
    ports: Ports,
    clients: Vec<UnixStream>,
    backlog: Vec<u8>,
}

impl Writer {
    /// Writes one line; output that nobody takes is lost, as on a real port.
    pub fn line(&mut self, text: &str) {
        let line = format!("{text}\r\n");
        match self.ports.serial.clone() {
            Port::Nowhere => {}
            Port::Stdout => print_line(&line),
            Port::File(file) => drop((&*file).write_all(line.as_bytes())),
            Port::Socket(listener) => {
                self.accept_from(&listener);
                self.send(line.as_bytes());
            }
        }
        match &self.ports.console {
            Port::Stdout => print_line(&line),
            Port::File(file) => drop((&**file).write_all(line.as_bytes())),
            Port::Nowhere | Port::Socket(_) => {}
        }
    }

    /// Listening socket of the serial port, to poll for clients.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        match &self.ports.serial {
            Port::Socket(listener) => Some(listener.socket.as_fd()),
            _ => None,
        }
    }

    /// Accepts waiting clients; the first one gets what was written before.
    pub fn accept(&mut self) {
        if let Port::Socket(listener) = self.ports.serial.clone() {
            self.accept_from(&listener);
        }
    }

    fn accept_from(&mut self, listener: &Listener) {
        while let Ok((mut stream, _)) = listener.socket.accept() {
            let _ = stream.write_all(&std::mem::take(&mut self.backlog));
            let _ = stream.set_nonblocking(true);
            self.clients.push(stream);
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        if self.clients.is_empty() && self.backlog.len() + bytes.len() <= BACKLOG_BYTES {
            self.backlog.extend_from_slice(bytes);
        }
        self.clients.retain_mut(|client| client.write_all(bytes).is_ok());
    }
}

fn print_line(line: &str) {
    // Nobody may be reading stdout.
    let _ = io::stdout().write_all(line.as_bytes());
}
