//! A network: an address and how many of its leading bits count.
//!
//! Takes and gives text as `10.0.0.0/8` and `2001:db8::/32`. Bits behind the prefix are cut off when it is made.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    addr: IpAddr,
    prefix: u8,
}

/// Why a text is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// There is no slash.
    #[error("no \"/\" and prefix length, as in 10.0.0.0/8")]
    NoPrefix,
    /// What stands before the slash is no address.
    #[error("what stands before the \"/\" is no IP address")]
    Address,
    /// What stands behind the slash is no prefix length for this family.
    #[error("the prefix length must be 0 to {0}")]
    Prefix(u8),
}

impl Cidr {
    /// The network of the first `prefix` bits of `addr`; none if it has not that many.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= bits(addr)).then(|| Self { addr: masked(addr, prefix), prefix })
    }

    /// Its first address.
    pub const fn addr(self) -> IpAddr {
        self.addr
    }

    /// How many leading bits count.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether all bits count.
    pub fn is_one_address(self) -> bool {
        self.prefix == bits(self.addr)
    }

    /// Whether `addr` is in it. An address of the other family never is.
    pub fn contains(self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.addr.is_ipv4() && masked(addr, self.prefix) == self.addr
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (addr, prefix) = text.split_once('/').ok_or(CidrError::NoPrefix)?;
        let addr: IpAddr = addr.parse().map_err(|_| CidrError::Address)?;
        let digits = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = prefix.parse().ok().filter(|_| digits);
        prefix.and_then(|prefix| Self::new(addr, prefix)).ok_or(CidrError::Prefix(bits(addr)))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

fn bits(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

fn masked(addr: IpAddr, prefix: u8) -> IpAddr {
    match addr {
        IpAddr::V4(addr) => {
            let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(addr.to_bits() & !host))
        }
        IpAddr::V6(addr) => {
            let host = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() & !host))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bits_behind_the_prefix_do_not_count() {
        let network: Cidr = "10.1.2.3/8".parse().unwrap();
        assert_eq!(network.to_string(), "10.0.0.0/8");
        assert!(network.contains([10, 255, 0, 1].into()) && !network.contains([11, 0, 0, 0].into()));
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().contains([255; 4].into()));
        assert!(!"0.0.0.0/0".parse::<Cidr>().unwrap().contains(Ipv6Addr::LOCALHOST.into()));
        assert!("::/0".parse::<Cidr>().unwrap().contains(Ipv6Addr::LOCALHOST.into()));
        assert_eq!("2001:db8:ffff::1/32".parse::<Cidr>().unwrap().to_string(), "2001:db8::/32");
    }

    #[test]
    fn what_is_no_network_is_told() {
        assert_eq!("10.0.0.0".parse::<Cidr>(), Err(CidrError::NoPrefix));
        assert_eq!("10.0.0/8".parse::<Cidr>(), Err(CidrError::Address));
        for text in ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/999"] {
            assert_eq!(text.parse::<Cidr>(), Err(CidrError::Prefix(32)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_and_back(addr: IpAddr, prefix in 0..=128u8) {
            if let Some(network) = Cidr::new(addr, prefix) {
                prop_assert_eq!(network.to_string().parse(), Ok(network));
                prop_assert!(network.contains(addr));
            }
        }
    }
}
