//! TAP devices: opened by name in the namespace of the process, with virtio headers (cloud-hypervisor.md 7).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::config::{MacAddr, NetConfig};
use crate::error::{Chain, Outcome};

/// Bytes of the virtio network header in front of each frame.
pub const HEADER_BYTES: usize = 12;
/// Longest interface name.
const NAME_LIMIT: usize = libc::IFNAMSIZ - 1;

nix::ioctl_write_int_bad!(tun_set_offload, nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>()));
nix::ioctl_write_ptr!(tun_set_header_size, b'T', 216, libc::c_int);
nix::ioctl_readwrite_bad!(get_hardware_address, libc::SIOCGIFHWADDR, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_hardware_address, libc::SIOCSIFHWADDR, libc::ifreq);
nix::ioctl_readwrite_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_mtu, libc::SIOCSIFMTU, libc::ifreq);

/// Opens the TAP of a net device and writes the host's MAC back into the configuration.
pub fn open(net: &mut NetConfig) -> Outcome<OwnedFd> {
    if let Some(fds) = net.fds.as_ref().filter(|_| net.tap.is_none()) {
        return from_inherited(fds);
    }
    open_named(net).map_err(|chain| chain.under("Failed to open taps").under("Cannot create virtio-net device"))
}

/// A copy of the first inherited descriptor; the original stays open for a reboot.
fn from_inherited(fds: &[i32]) -> Outcome<OwnedFd> {
    let fd = fds.first().copied().unwrap_or(-1);
    // SAFETY: duplicates a descriptor this process received; a wrong number is reported by the kernel.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        let chain = Chain::io("Error calling dup() on tap fd", &io::Error::last_os_error());
        return Err(chain.under("Cannot create virtio-net device"));
    }
    // SAFETY: the copy was just made and has no other owner.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    set_header_size(&copy)?;
    set_nonblocking(&copy)?;
    Ok(copy)
}

fn open_named(net: &mut NetConfig) -> Outcome<OwnedFd> {
    let template = net.tap.clone().unwrap_or_else(|| "vmtap%d".to_owned());
    check_queues(&template, net.num_queues / 2)?;
    let (tap, name) = attach(&template, net.num_queues / 2).map_err(|chain| chain.under("Open tap device failed"))?;
    let control = control_socket()?;
    match net.host_mac {
        Some(mac) => {
            let mut request = request_for(&name);
            request.ifr_ifru.ifru_hwaddr = hardware_address(mac);
            // SAFETY: the request is a complete `ifreq` of this frame.
            ioctl(unsafe { set_hardware_address(control.as_raw_fd(), &request) })
                .map_err(|chain| chain.under("Setting MAC address failed"))?;
        }
        None => net.host_mac = Some(host_mac(&control, &name)?),
    }
    if let Some(mtu) = net.mtu {
        let mut request = request_for(&name);
        request.ifr_ifru.ifru_mtu = libc::c_int::from(mtu);
        // SAFETY: as above.
        ioctl(unsafe { set_mtu(control.as_raw_fd(), &request) }).map_err(|chain| chain.under("Setting MTU failed"))?;
    }
    enable(&control, &name).map_err(|chain| chain.under("Enabling tap interface failed"))?;
    set_header_size(&tap)?;
    Ok(tap)
}

/// The check reads sysfs, so it only sees interfaces of the mounted /sys (cloud-hypervisor.md 7).
fn check_queues(name: &str, pairs: usize) -> Outcome<()> {
    let path = PathBuf::from(format!("/sys/class/net/{name}/tun_flags"));
    if !path.exists() {
        return Ok(());
    }
    let text =
        std::fs::read_to_string(&path).map_err(|error| Chain::io("Failed to read the TAP flags from sysfs", &error))?;
    let digits = text.trim().trim_start_matches("0x");
    let flags = i32::from_str_radix(digits, 16).map_err(|error| {
        Chain::new(error.to_string()).under("Failed to convert an hexadecimal string into an integer")
    })?;
    let many = flags & libc::IFF_MULTI_QUEUE != 0;
    match (many, pairs > 1) {
        (true, false) => Err(Chain::new("Error related to the multiqueue support (no support device side)")),
        (false, true) => Err(Chain::new("Error related to the multiqueue support (no support TAP side)")),
        _ => Ok(()),
    }
}

/// Opens /dev/net/tun for the interface, which is created if it does not exist; returns its name too.
fn attach(name: &str, pairs: usize) -> Outcome<(OwnedFd, String)> {
    if name.len() > NAME_LIMIT {
        return Err(Chain::new(format!("Interface name too long (max length is {NAME_LIMIT}): {name}")));
    }
    let tun: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|error| Chain::io("Couldn't open /dev/net/tun", &error))?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if pairs > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = request_for(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the argument is the address of a complete `ifreq` that outlives the call.
    let done = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &mut request) };
    if done < 0 {
        let error = io::Error::last_os_error();
        return Err(Chain::io("Unable to configure tap interface", &error));
    }
    let bytes: Vec<u8> = request.ifr_name.iter().map(|c| c.cast_unsigned()).collect();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let name = String::from_utf8_lossy(&bytes[..end]).into_owned();
    Ok((tun.into(), name))
}

fn host_mac(control: &OwnedFd, name: &str) -> Outcome<MacAddr> {
    let mut request = request_for(name);
    // SAFETY: the request is a complete `ifreq` of this frame.
    ioctl(unsafe { get_hardware_address(control.as_raw_fd(), &mut request) })
        .map_err(|chain| chain.under("Getting MAC address failed"))?;
    // SAFETY: the call above filled this member of the union.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    let mut bytes = [0; 6];
    for (byte, c) in bytes.iter_mut().zip(data) {
        *byte = c.cast_unsigned();
    }
    Ok(MacAddr(bytes))
}

/// Sets the link up unless it is up already, which needs no privilege.
fn enable(control: &OwnedFd, name: &str) -> Outcome<()> {
    let mut request = request_for(name);
    // SAFETY: the request is a complete `ifreq` of this frame.
    ioctl(unsafe { get_flags(control.as_raw_fd(), &mut request) })?;
    let wanted = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the call above filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    if flags & wanted == wanted {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = flags | wanted;
    // SAFETY: as above.
    ioctl(unsafe { set_flags(control.as_raw_fd(), &request) })
}

fn set_header_size(tap: &OwnedFd) -> Outcome<()> {
    // The guest's stack takes plain frames only: no partial checksums, no segments larger than the MTU.
    // SAFETY: plain system call with an integer argument.
    ioctl(unsafe { tun_set_offload(tap.as_raw_fd(), 0) })
        .map_err(|chain| chain.under("Unable to configure tap interface"))?;
    let size = HEADER_BYTES as libc::c_int;
    // SAFETY: the argument is the address of an int that outlives the call.
    ioctl(unsafe { tun_set_header_size(tap.as_raw_fd(), &size) })
        .map_err(|chain| chain.under("Setting vnet header size failed"))
}

fn set_nonblocking(tap: &OwnedFd) -> Outcome<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(tap.as_fd(), FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))
        .map(drop)
        .map_err(|errno| Chain::errno("Open tap device failed", errno))
}

fn control_socket() -> Outcome<OwnedFd> {
    let made = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    made.map_err(|errno| Chain::errno("Failed to create a socket", errno))
}

fn ioctl(done: nix::Result<libc::c_int>) -> Outcome<()> {
    done.map(drop).map_err(|errno| {
        let error = io::Error::from(errno);
        Chain::new(format!("Ioctl failed ({error})"))
    })
}

fn request_for(name: &str) -> libc::ifreq {
    // SAFETY: all bytes zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (c, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *c = byte.cast_signed();
    }
    request
}

fn hardware_address(mac: MacAddr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (c, byte) in data.iter_mut().zip(mac.0) {
        *c = byte.cast_signed();
    }
    libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: data }
}
