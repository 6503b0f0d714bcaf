//! The collector at the other end of a sink's connection.
//!
//! Takes its address and, where it is reached by TLS, whom it must be; gives connections. The certificate files are read
//! at each connect, so that renewed ones are used without a restart.

use super::SinkError;
use flow_common::net::{Address, Connection, TlsClient, TlsTrust, connect_as};
use std::fmt;

/// A collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it is.
    pub address: Address,
    /// Whom it must be and what it is shown; needed where the address's protocol is tls.
    pub trust: Option<TlsTrust>,
    /// The name that its certificate must be for, if that is not the address's host.
    pub name: Option<String>,
}

impl Peer {
    pub(super) async fn connect(&self) -> Result<Connection, SinkError> {
        let tls = self.trust.as_ref().map(TlsClient::trusting).transpose()?;
        let name = self.name.clone().unwrap_or_else(|| self.address.server_name());
        Ok(connect_as(&self.address, &name, tls.as_ref()).await?)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}
