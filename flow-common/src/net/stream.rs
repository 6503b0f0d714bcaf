//! A connected stream of bytes, in the clear or by TLS, for protocols with questions and answers.
//!
//! Takes what [`connect`](super::connect) made; reads and writes as tokio's streams do.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

/// Bytes both ways.
#[derive(Debug)]
pub struct ByteStream(Kind);

#[derive(Debug)]
enum Kind {
    Tls(Box<TlsStream<TcpStream>>),
    Tcp(TcpStream),
}

impl From<TcpStream> for ByteStream {
    fn from(stream: TcpStream) -> Self {
        ByteStream(Kind::Tcp(stream))
    }
}

impl From<TlsStream<TcpStream>> for ByteStream {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        ByteStream(Kind::Tls(Box::new(stream)))
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Tls(stream) => Pin::new(stream).poll_read(cx, into),
            Kind::Tcp(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Kind::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Kind::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Kind::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Kind::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Kind::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
