//! The API's client: one request a connection.
//!
//! Takes where the API is and who asks; gives bodies, whole or line by line. What it is not told it takes from the
//! configuration file, and from the files that the aggregator puts in its folder.

use crate::{
    api::{CERTIFICATE, TOKEN},
    config::{API_PORT, Config},
};
use anyhow::{Context, Result, bail};
use flow_common::net::{Address, Protocol, TlsClient, TlsTrust, Trust, connect_as};
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::path::PathBuf;

/// Where the aggregator is asked.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "The aggregator that is asked")]
pub(super) struct Server {
    /// Its configuration file, for its port and the folder with its certificate and token
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Its API, if not on this host
    #[arg(long, value_name = "HOST[:PORT]")]
    server: Option<String>,
    /// The token, if not in the aggregator's folder
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The certificate of the API or of its CA, if not in the aggregator's folder
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// A client that has asked nothing yet.
pub(super) struct Client {
    address: Address,
    name: String,
    tls: TlsClient,
    token: String,
}

/// Lines of an answer as they come.
pub(super) struct Lines {
    body: Incoming,
    text: Vec<u8>,
    /// The connection's task ends with this.
    _connection: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Reads what the client needs.
    pub(super) fn client(&self) -> Result<Client> {
        let config = match &self.config {
            None => Config::default(),
            Some(path) => super::load(Some(path))?.0,
        };
        let (address, name) = self.address(&config)?;
        let folder = &config.api_folder;
        let token_file =
            self.token_file.clone().or_else(|| config.api_token.clone()).unwrap_or_else(|| folder.join(TOKEN));
        let token = std::fs::read_to_string(&token_file).with_context(|| {
            format!(
                "cannot read the token {}: does the aggregator run, and as this user? Else name a token with --token-file",
                token_file.display()
            )
        })?;
        let made = folder.join(CERTIFICATE);
        let ca = self.ca_file.clone().or_else(|| config.api_cert.clone()).or_else(|| made.exists().then_some(made));
        let tls = TlsClient::trusting(&TlsTrust::from(Trust::of(ca)))?;
        Ok(Client { address, name, tls, token: token.trim().to_owned() })
    }

    /// On this host the certificate is for `localhost`.
    fn address(&self, config: &Config) -> Result<(Address, String)> {
        let Some(server) = &self.server else {
            let port = config.api_port.context("this aggregator has no API: apiServer.apiPort is empty")?;
            let local = Address::parse(&format!("localhost:{port}"), Protocol::Tls)?;
            return Ok((local, "localhost".to_owned()));
        };
        let address = Address::parse_or(server, config.api_port.unwrap_or(API_PORT), Protocol::Tls)?;
        if address.protocol != Protocol::Tls {
            bail!("--server {server}: the API is reached by tls alone");
        }
        let name = address.server_name();
        Ok((address, name))
    }
}

impl Client {
    /// An answer as a value.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.value("GET", path, "").await
    }

    /// The answer to a change, as a value.
    pub(super) async fn put<T: DeserializeOwned>(&self, path: &str, body: &str) -> Result<T> {
        self.value("PUT", path, body).await
    }

    /// An answer line by line.
    pub(super) async fn lines(&self, path: &str) -> Result<Lines> {
        let (answer, connection) = self.ask("GET", path, "").await?;
        Ok(Lines { body: answer.into_body(), text: Vec::new(), _connection: connection })
    }

    async fn value<T: DeserializeOwned>(&self, method: &str, path: &str, body: &str) -> Result<T> {
        let (answer, _connection) = self.ask(method, path, body).await?;
        let body = answer.into_body().collect().await.context("the answer broke off")?.to_bytes();
        serde_json::from_slice(&body).context("the answer is not understood; is the aggregator of another version?")
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<(Response<Incoming>, tokio::task::JoinHandle<()>)> {
        let connection =
            connect_as(&self.address, &self.name, Some(&self.tls)).await.context("the API does not answer")?;
        let stream = connection.into_stream().context("TLS is a stream")?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.context("the API speaks no HTTP")?;
        // What goes wrong on the connection shows in the answer.
        let connection = tokio::spawn(async { drop(connection.await) });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.name)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .context("the token is no text for a header")?;
        let answer = sender.send_request(request).await.context("the API does not answer")?;
        if answer.status().is_success() {
            return Ok((answer, connection));
        }
        let status = answer.status();
        let body = answer.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let told = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let told = told.and_then(|told| told["error"]["message"].as_str().map(str::to_owned));
        bail!("the aggregator refuses: {}", told.unwrap_or_else(|| status.to_string()))
    }
}

impl Lines {
    /// The next line; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let rest = self.text.split_off(end + 1);
                let line = std::mem::replace(&mut self.text, rest);
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            if let Ok(data) = frame.context("the answer broke off")?.into_data() {
                self.text.extend_from_slice(&data);
            }
        }
    }

    /// Whether another line is here already.
    pub(super) fn has_more(&self) -> bool {
        self.text.contains(&b'\n')
    }
}

/// A value as it stands in a URL's query.
pub(super) fn escaped(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    text.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Does what waits for the network.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("no threads")?.block_on(work)
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("address", &self.address).finish_non_exhaustive()
    }
}
