//! A server as the configuration names it, and a session with it by either protocol.
//!
//! Takes endpoint, database and credentials; gives sessions. It tries once: whoever asked knows what to do then.

use super::{block::Block, endpoint::Endpoint, error::Error, http::Http, login::Login, native::Native, wire::Answer};
use flow_common::net::{TlsClient, Trust, connect};
use std::time::Duration;
use tokio::time::timeout;

/// A server greets at once, whatever else it does.
const GREETING: Duration = Duration::from_secs(10);
/// A server that does not answer for so long is given up.
const LATE: Duration = Duration::from_secs(120);

/// A server.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Who we are.
    pub login: Login,
    /// Whose certificates are taken, where the endpoint is one of TLS.
    pub trust: Trust,
    /// Whether every statement is logged.
    pub debug: bool,
}

/// A session.
#[derive(Debug)]
pub struct Session {
    kind: Kind,
    debug: bool,
}

#[derive(Debug)]
enum Kind {
    Native(Box<Native>),
    Http(Box<Http>),
}

impl Server {
    /// Connects.
    pub async fn open(&self) -> Result<Session, Error> {
        let Endpoint { scheme, address } = &self.endpoint;
        // Read anew each time: a CA may be renewed.
        let tls = scheme.is_secure().then(|| TlsClient::trusting(&self.trust.clone().into())).transpose()?;
        let connection = connect(address, tls.as_ref()).await?;
        let stream = connection.into_stream().ok_or_else(|| std::io::Error::other("no stream"))?;
        let opening = async {
            Ok::<_, Error>(match scheme.is_native() {
                true => Kind::Native(Box::new(Native::open(stream, &self.login).await?)),
                false => {
                    let host = self.endpoint.authority();
                    Kind::Http(Box::new(Http::open(stream, host, self.login.clone()).await?))
                }
            })
        };
        let kind = timeout(GREETING, opening).await.map_err(|_| Error::Silent(GREETING))??;
        Ok(Session { kind, debug: self.debug })
    }
}

impl Session {
    /// Runs a statement, whose answer, if it has one, must be columns of strings or integers.
    pub async fn ask(&mut self, sql: &str) -> Result<Answer, Error> {
        self.tell(sql);
        let asking = async {
            match &mut self.kind {
                Kind::Native(native) => native.ask(sql).await,
                Kind::Http(http) => http.ask(sql).await,
            }
        };
        timeout(LATE, asking).await.map_err(|_| Error::Late(LATE))?
    }

    /// Inserts a block; `into` is the statement up to and with the names of the columns.
    pub async fn insert(&mut self, into: &str, block: &Block, settings: &[(&str, &str)]) -> Result<(), Error> {
        self.tell(&format!("{into}: {} rows, {} bytes", block.rows, block.body.len()));
        let inserting = async {
            match &mut self.kind {
                Kind::Native(native) => native.insert(into, block, settings).await,
                Kind::Http(http) => http.insert(into, block, settings).await,
            }
        };
        timeout(LATE, inserting).await.map_err(|_| Error::Late(LATE))?
    }

    fn tell(&self, statement: &str) {
        if self.debug {
            tracing::info!("ClickHouse: {statement}");
        }
    }
}
