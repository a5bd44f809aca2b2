//! The TAP that Cloud Hypervisor opens by name (cloud-hypervisor.md 7).

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;

use nix::libc;

use super::error::Error;

const DEVICE: &str = "/dev/net/tun";

mod ioctl {
    //! linux/if_tun.h
    nix::ioctl_write_ptr_bad!(
        set_interface,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int_bad!(set_persistent, nix::request_code_write!(b'T', 203, size_of::<libc::c_int>()));
}

/// Makes a TAP in the thread's namespace that stays until the namespace goes.
pub(super) fn create(name: &str) -> Result<(), Error> {
    let _not_copied = crate::forks::none();
    let device = attach(name)?;
    // SAFETY: the descriptor is open and the argument is a number.
    unsafe { ioctl::set_persistent(device.as_raw_fd(), 1) }
        .map_err(|errno| Error::kernel(format!("make TAP {name} stay"), errno))?;
    Ok(())
}

/// Opens a TAP, which is made if it is not there: one queue pair, no packet information, a virtio
/// header before every frame.
pub(super) fn attach(name: &str) -> Result<File, Error> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|error| Error::kernel(format!("open {DEVICE} (is the kernel module `tun` loaded?)"), error))?;
    // SAFETY: all-zero bytes are a valid `ifreq`, which is plain old data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the descriptor is open and the request outlives the call, which only reads it.
    unsafe { ioctl::set_interface(device.as_raw_fd(), &raw const request) }
        .map_err(|errno| Error::kernel(format!("open TAP {name}"), errno))?;
    Ok(device)
}
