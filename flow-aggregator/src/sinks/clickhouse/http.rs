//! A session over HTTP: each statement is a request, its answer and the rows of an insert are blocks of the format
//! Native.
//!
//! Takes a connected stream; gives answers to questions and inserts blocks that are encoded already. A session that
//! failed is of no more use.

use super::{
    block::Block,
    error::{Error, Refusal},
    login::Login,
    wire::{Answer, Fault, LONGEST_ANSWER, Reader},
};
use bytes::Bytes;
use flow_common::net::ByteStream;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, StatusCode,
    client::conn::http1::{self, SendRequest},
    header::{CONTENT_LENGTH, HOST},
};
use hyper_util::rt::TokioIo;
use std::{fmt::Write, io};
use tokio::task::AbortHandle;

/// A server and who we are.
#[derive(Debug)]
pub(super) struct Http {
    requests: SendRequest<Full<Bytes>>,
    connection: AbortHandle,
    host: String,
    login: Login,
}

impl Drop for Http {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Http {
    /// Nothing is asked yet.
    pub(super) async fn open(stream: ByteStream, host: String, login: Login) -> Result<Http, Error> {
        let (requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| lost(&error))?;
        let connection = tokio::spawn(async move {
            // Whoever sent a request is told as well.
            let _ = connection.await;
        });
        Ok(Http { requests, connection: connection.abort_handle(), host, login })
    }

    /// Runs a statement, whose answer is columns of strings or integers.
    pub(super) async fn ask(&mut self, sql: &str) -> Result<Answer, Error> {
        let body = self.send(&[], sql.to_owned().into()).await?;
        let (mut from, mut answer) = (Reader::new(&body), Answer::default());
        while !from.is_empty() {
            from.block(&mut answer).map_err(foreign)?;
        }
        Ok(answer)
    }

    /// Inserts a block, whose columns `into` names.
    pub(super) async fn insert(&mut self, into: &str, block: &Block, settings: &[(&str, &str)]) -> Result<(), Error> {
        let sql = format!("{into} FORMAT Native");
        let mut parameters = vec![("query", sql.as_str())];
        if block.compressed {
            parameters.push(("decompress", "1"));
        }
        parameters.extend_from_slice(settings);
        self.send(&parameters, block.body.clone()).await.map(drop)
    }

    async fn send(&mut self, parameters: &[(&str, &str)], body: Bytes) -> Result<Bytes, Error> {
        self.requests.ready().await.map_err(|error| lost(&error))?;
        let request = Request::post(self.target(parameters))
            .header(HOST, &self.host)
            .header(CONTENT_LENGTH, body.len())
            .header("X-ClickHouse-User", &self.login.user)
            .header("X-ClickHouse-Key", &self.login.password)
            .body(Full::new(body))
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let answer = self.requests.send_request(request).await.map_err(|error| lost(&error))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await.map_err(io::Error::other)?.to_bytes();
        if head.status == StatusCode::OK {
            return Ok(body);
        }
        let mut refusal = Refusal::from_text(&String::from_utf8_lossy(&body));
        if refusal.code == 0 {
            refusal.message = format!("HTTP status {}: {}", head.status, refusal.message);
        }
        Err(refusal.into())
    }

    /// The server answers when it knows the outcome, so that the status tells it.
    fn target(&self, parameters: &[(&str, &str)]) -> String {
        let common = [("wait_end_of_query", "1"), ("default_format", "Native"), ("database", &*self.login.database)];
        let mut target = String::from("/?");
        for (name, value) in common.iter().chain(parameters) {
            target.push_str(name);
            target.push('=');
            for byte in value.bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => target.push(char::from(byte)),
                    _ => write!(target, "%{byte:02X}").expect("a string takes every text"),
                }
            }
            target.push('&');
        }
        target.pop();
        target
    }
}

fn lost(error: &hyper::Error) -> Error {
    if error.is_parse() {
        return foreign(Fault::Malformed("this is no HTTP"));
    }
    let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
    io::Error::other(cause).into()
}

fn foreign(fault: Fault) -> Error {
    Error::Foreign { fault, native: false }
}
