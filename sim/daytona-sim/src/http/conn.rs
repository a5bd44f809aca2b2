//! The sockets below the HTTP server: who closes them, and closing them by force.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// A second handle of an accepted connection's socket.
#[derive(Debug)]
pub(crate) struct Conn {
    stream: TcpStream,
    admin: AtomicBool,
}

impl Conn {
    /// Closes the connection in both directions. What the server still writes is lost.
    pub fn cut(&self) {
        // The only failure is a connection that is gone already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Marks the connection as one of the admin interface, which outages spare.
    pub fn mark_admin(&self) {
        self.admin.store(true, Ordering::Relaxed);
    }

    /// Completes when the client has closed the connection.
    pub async fn closed(&self) {
        let watched = self.stream.try_clone().and_then(tokio::net::TcpStream::from_std);
        let Ok(watched) = watched else {
            // Without a handle nothing can be seen; the caller's own deadline ends the wait.
            return std::future::pending().await;
        };
        let mut byte = [0_u8; 1];
        loop {
            match watched.peek(&mut byte).await {
                Ok(0) | Err(_) => return,
                // The client has sent more; what follows it is visible only after that has been read.
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// All open connections.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: Mutex<Vec<Weak<Conn>>>,
}

impl Connections {
    /// Registers an accepted connection. `None` when the process has no file descriptor left for the second handle.
    pub fn add(&self, stream: &actix_web::rt::net::TcpStream) -> Option<Arc<Conn>> {
        let stream = TcpStream::from(stream.as_fd().try_clone_to_owned().ok()?);
        let conn = Arc::new(Conn { stream, admin: AtomicBool::new(false) });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|known| known.strong_count() > 0);
        open.push(Arc::downgrade(&conn));
        Some(conn)
    }

    /// Cuts every connection that is not one of the admin interface.
    pub fn cut_all(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for conn in open.iter().filter_map(Weak::upgrade) {
            if !conn.admin.load(Ordering::Relaxed) {
                conn.cut();
            }
        }
    }
}
