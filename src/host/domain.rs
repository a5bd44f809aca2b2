//! The default of `RUNNER_DOMAIN`: the IPv4 address of the interface that the default route leaves by
//! (PROTOCOL.md 12).

use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::Error;

/// Flag of a usable route, see `linux/route.h`.
const RTF_UP: u32 = 0x1;
/// Flag of a route that only says "unreachable".
const RTF_REJECT: u32 = 0x200;

/// An IPv4 address and the interface it is on.
type Address = (String, Ipv4Addr);

/// The address that other machines most likely reach this host by. Without a default route it is the first
/// address that is not of the loopback; none on a host with no other address.
pub fn default_domain() -> Result<Option<Ipv4Addr>, Error> {
    let path = PathBuf::from("/proc/net/route");
    let routes = match std::fs::read_to_string(&path) {
        Ok(routes) => routes,
        Err(source) => return Err(Error::Read { path, source }),
    };
    Ok(choose(&routes, &addresses()?))
}

fn addresses() -> Result<Vec<Address>, Error> {
    let list = nix::ifaddrs::getifaddrs().map_err(|source| Error::Addresses { source })?;
    Ok(list.filter_map(|entry| Some((entry.interface_name, entry.address?.as_sockaddr_in()?.ip()))).collect())
}

fn choose(routes: &str, addresses: &[Address]) -> Option<Ipv4Addr> {
    let usable = |address: &&Address| !address.1.is_loopback() && !address.1.is_unspecified();
    let by_route = default_interface(routes)
        .and_then(|interface| addresses.iter().filter(usable).find(|(name, _)| name == interface));
    if by_route.is_none() {
        tracing::warn!("no default route with an IPv4 address; set RUNNER_DOMAIN to this host's name or address");
    }
    by_route.or_else(|| addresses.iter().find(usable)).map(|(_, address)| *address)
}

/// The interface of the default route with the lowest metric, from the text of `/proc/net/route`.
fn default_interface(routes: &str) -> Option<&str> {
    let parsed = routes.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [interface, destination, _gateway, flags, _, _, metric, mask, ..] = fields.as_slice() else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let default = *destination == "00000000" && *mask == "00000000";
        let usable = flags & RTF_UP != 0 && flags & RTF_REJECT == 0;
        (default && usable).then_some((metric.parse::<u32>().ok()?, *interface))
    });
    parsed.min_by_key(|(metric, _)| *metric).map(|(_, interface)| interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    fn addresses() -> Vec<Address> {
        [("lo", [127, 0, 0, 1]), ("br0", [10, 0, 0, 1]), ("eth1", [192, 0, 2, 7]), ("eth0", [192, 0, 2, 8])]
            .map(|(name, address)| (name.to_owned(), Ipv4Addr::from(address)))
            .to_vec()
    }

    fn route(interface: &str, destination: &str, flags: &str, metric: u32, mask: &str) -> String {
        format!("{interface}\t{destination}\t010200C0\t{flags}\t0\t0\t{metric}\t{mask}\t0\t0\t0\n")
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_decides() {
        let zero = "00000000";
        let routes = [
            HEAD.to_owned(),
            route("br0", "0000000A", "0001", 0, "00FFFFFF"),
            route("br0", zero, "0001", 0, "000000FF"),
            route("br0", zero, "0201", 0, zero),
            route("eth0", zero, "0003", 200, zero),
            route("eth1", zero, "0003", 100, zero),
        ];
        assert_eq!(choose(&routes.concat(), &addresses()), Some(Ipv4Addr::new(192, 0, 2, 7)));
    }

    #[test]
    fn without_default_route_the_first_other_address_is_taken() {
        assert_eq!(choose(HEAD, &addresses()), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(choose("", &addresses()[..1]), None);
        let odd = format!("{HEAD}wg0\tzz\n{}", route("wg0", "00000000", "0003", 0, "00000000"));
        assert_eq!(choose(&odd, &addresses()), Some(Ipv4Addr::new(10, 0, 0, 1)), "an interface without address");
    }

    #[test]
    fn this_host_can_be_asked() {
        default_domain().unwrap();
    }
}
