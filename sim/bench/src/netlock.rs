//! How long the kernel lets somebody wait who changes a link. All network namespaces of a machine share
//! one lock for that, so whoever else makes or removes links here slows every create down.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::Context;

nix::ioctl_readwrite_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);

/// Sets the loopback link's flags to what they are: the lock and nothing else.
pub fn wait() -> anyhow::Result<Duration> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").context("cannot make a socket")?;
    // SAFETY: all-zero bytes are a valid `ifreq`, which is plain old data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from.cast_signed();
    }
    let failed = |error: nix::Error| io::Error::from(error);
    // SAFETY: the descriptor is open and the request outlives the call.
    unsafe { get_flags(socket.as_raw_fd(), &raw mut request) }.map_err(failed).context("cannot read lo's flags")?;
    let began = Instant::now();
    // SAFETY: as above; the call only reads the request.
    unsafe { set_flags(socket.as_raw_fd(), &raw const request) }.map_err(failed).context("cannot set lo's flags")?;
    Ok(began.elapsed())
}
