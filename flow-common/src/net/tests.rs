//! Both ends on the loopback interface, with real certificates.

use super::*;
use bytes::BytesMut;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, crypto::aws_lc_rs};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::symlink,
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A CA's files with a server pair (for `localhost` and 127.0.0.1) and a client pair.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Authority {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        write(dir.path(), "ca", &params.self_signed(&key).unwrap().pem(), &key);
        let signer = Issuer::new(params, key);
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
            write(dir.path(), name, &params.signed_by(&key, &signer).unwrap().pem(), &key);
        }
        Authority(dir)
    }

    fn files(&self, name: &str) -> TlsFiles {
        let at = |file: &str| self.0.path().join(file);
        TlsFiles { ca: at("ca.crt"), cert: at(&format!("{name}.crt")), key: at(&format!("{name}.key")) }
    }

    fn server(&self) -> TlsServer {
        TlsServer::load(&self.files("server")).unwrap()
    }

    fn client(&self) -> TlsClient {
        TlsClient::load(&self.files("client")).unwrap()
    }
}

fn write(dir: &Path, name: &str, cert: &str, key: &KeyPair) {
    fs::write(dir.join(format!("{name}.crt")), cert).unwrap();
    fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

/// A listener, and where it is.
async fn listen(protocol: Protocol, tls: Option<&TlsServer>) -> (Listener, SocketAddr) {
    let listener = Listener::bind(LOOPBACK, protocol, tls).await.unwrap();
    let addr = listener.local().unwrap();
    (listener, addr)
}

async fn accept(listener: Listener) -> std::io::Result<Incoming> {
    let Listener::Stream(listener) = listener else { panic!("streams only") };
    listener.accept().await?.complete().await
}

async fn receive(mut incoming: Incoming, length: usize) -> Vec<u8> {
    let mut received = BytesMut::new();
    while received.len() < length {
        received.reserve(256 * 1024);
        assert_ne!(incoming.fill(&mut received).await.unwrap(), 0, "{} of {length} bytes", received.len());
    }
    received.to_vec()
}

#[tokio::test]
async fn streams_carry_every_byte() {
    let authority = Authority::new();
    let (server, client) = (authority.server(), authority.client());
    let message: Vec<u8> = (0..STREAM_MESSAGE_LIMIT).map(|at| (at % 251) as u8).collect();
    for protocol in [Protocol::Tls, Protocol::Tcp] {
        let (listener, addr) = listen(protocol, Some(&server)).await;
        let receiving =
            tokio::spawn(async { receive(accept(listener).await.unwrap(), 10 * STREAM_MESSAGE_LIMIT).await });
        let address = Address::parse(&format!("localhost:{}:{protocol}", addr.port()), Protocol::Udp).unwrap();
        let mut connection = connect(&address, Some(&client)).await.unwrap();
        assert_eq!((connection.message_limit(), connection.peer()), (STREAM_MESSAGE_LIMIT, addr));
        for _ in 0..10 {
            connection.send(&message).await.unwrap();
        }
        connection.flush().await.unwrap();
        assert!(receiving.await.unwrap() == message.repeat(10), "{protocol}");
        let ended = connection.closed().await;
        connection.close().await.unwrap_or_default();
        assert!(!ended.to_string().is_empty());
    }
}

#[tokio::test]
async fn a_client_of_another_ca_is_turned_away() {
    let (ours, other) = (Authority::new(), Authority::new());
    let (listener, addr) = listen(Protocol::Tls, Some(&ours.server())).await;
    let accepting = tokio::spawn(accept(listener));
    // It trusts us, but shows a certificate that we did not sign.
    let mut files = other.files("client");
    files.ca = ours.files("client").ca;
    let client = TlsClient::load(&files).unwrap();
    let mut connection = connect_to(addr, Protocol::Tls, "localhost", Some(&client)).await.unwrap();
    let refusal = accepting.await.unwrap().err().unwrap().to_string();
    assert!(refusal.contains("UnknownIssuer") || refusal.contains("BadSignature"), "{refusal}");
    let told = connection.closed().await.to_string();
    assert!(told.contains("alert"), "{told}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_turned_away() {
    let authority = Authority::new();
    let (listener, addr) = listen(Protocol::Tls, Some(&authority.server())).await;
    let accepting = tokio::spawn(accept(listener));
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(tls::roots(&authority.files("client").ca).unwrap())
        .with_no_client_auth();
    let stream = TcpStream::connect(addr).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    let refusal = accepting.await.unwrap().err().unwrap().to_string();
    assert!(refusal.contains("certificate"), "{refusal}");
    assert!(stream.read(&mut [0]).await.unwrap_err().to_string().contains("CertificateRequired"));
}

#[tokio::test]
async fn a_collector_of_another_ca_or_name_is_refused_with_a_remedy() {
    let (ours, other) = (Authority::new(), Authority::new());
    for (client, name, remedy) in
        [(other.client(), "localhost", "use the ca.crt"), (ours.client(), "elsewhere.example", "certs init --san")]
    {
        let (listener, addr) = listen(Protocol::Tls, Some(&ours.server())).await;
        let accepting = tokio::spawn(accept(listener));
        let error = connect_to(addr, Protocol::Tls, name, Some(&client)).await.unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(remedy), "{error}");
        assert!(accepting.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn plain_bytes_are_no_handshake() {
    let authority = Authority::new();
    let (listener, addr) = listen(Protocol::Tls, Some(&authority.server())).await;
    let accepting = tokio::spawn(accept(listener));
    let mut connection = connect_to(addr, Protocol::Tcp, "", None).await.unwrap();
    connection.send(&[0, 10, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
    assert!(accepting.await.unwrap().is_err());
}

#[tokio::test]
async fn datagrams_keep_their_bounds_and_know_their_limit() {
    let (listener, addr) = listen(Protocol::Udp, None).await;
    let Listener::Datagram(listener) = listener else { panic!("asked for datagrams") };
    let mut connection = connect_to(addr, Protocol::Udp, "", None).await.unwrap();
    // The loopback interface takes 65,536 bytes, IPv4 65,535 with its header and UDP's.
    assert_eq!(connection.message_limit(), 65_535 - 28);
    let longest = vec![7; connection.message_limit()];
    for message in [&b"one"[..], b"", &longest] {
        connection.send(message).await.unwrap();
        let mut buffer = BytesMut::new();
        let (length, peer) = listener.receive(&mut buffer).await.unwrap();
        assert_eq!((length, peer), (message.len(), connection.local()));
        assert!(buffer == message);
    }
    drop(listener);
    connection.send(b"nobody").await.unwrap();
    assert_eq!(connection.closed().await.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn what_cannot_be_reached_is_named() {
    // Bound, so that the port is nobody else's, but it does not listen.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind(LOOPBACK).unwrap();
    let addr = nobody.local_addr().unwrap();
    let refused = connect_to(addr, Protocol::Tcp, "localhost", None).await.unwrap_err().to_string();
    assert!(refused.starts_with(&format!("cannot connect to {addr} (tcp)")), "{refused}");
    let without = connect_to(addr, Protocol::Tls, "localhost", None).await.unwrap_err().to_string();
    assert!(without.contains("set tls.ca, tls.cert and tls.key"), "{without}");
    assert!(matches!(Listener::bind(LOOPBACK, Protocol::Tls, None).await, Err(ListenError::NoCertificates)));
}

#[test]
fn faults_of_certificate_files_name_the_file_and_the_remedy() {
    let (authority, other) = (Authority::new(), Authority::new());
    let files = authority.files("server");
    let empty = authority.0.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    let faults = [
        TlsFiles { cert: authority.0.path().join("missing.crt"), ..files.clone() },
        TlsFiles { ca: empty.clone(), ..files.clone() },
        TlsFiles { key: files.cert.clone(), ..files.clone() },
        TlsFiles { key: other.files("server").key, ..files },
    ];
    let texts = faults.iter().flat_map(|files| {
        let [server, client] = [TlsServer::load(files).unwrap_err(), TlsClient::load(files).unwrap_err()];
        [server.to_string(), client.to_string()]
    });
    let dirs = [(authority.0.path(), "DIR"), (other.0.path(), "OTHER")];
    let shown =
        texts.map(|text| dirs.iter().fold(text, |text, (dir, name)| text.replace(&dir.display().to_string(), name)));
    insta::assert_snapshot!(shown.collect::<Vec<_>>().join("\n"));
}

#[tokio::test]
async fn either_end_may_do_without_a_certificate_of_the_other() {
    let authority = Authority::new();
    let files = authority.files("server");
    let server = TlsServer::open(&files.cert, &files.key, TlsVersion::Tls13, &TlsSuites::default()).unwrap();
    let (listener, addr) = listen(Protocol::Tls, Some(&server)).await;
    let answering = tokio::spawn(async {
        let mut duplex = accept(listener).await.unwrap().into_stream();
        let mut asked = [0; 4];
        duplex.read_exact(&mut asked).await.unwrap();
        duplex.write_all(&asked).await.unwrap();
        duplex.shutdown().await.unwrap();
    });
    let trust = TlsTrust::from(Trust::Ca(files.ca));
    let address = Address::parse(&format!("{addr}:tls"), Protocol::Tls).unwrap();
    let client = TlsClient::trusting(&trust).unwrap();
    let mut duplex =
        connect_as(&address, "localhost", Some(&client)).await.unwrap().into_stream().expect("TLS is a stream");
    duplex.write_all(b"ping").await.unwrap();
    let mut answer = Vec::new();
    duplex.read_to_end(&mut answer).await.unwrap();
    answering.await.unwrap();
    assert_eq!(answer, b"ping");
}

#[tokio::test]
async fn a_name_that_the_certificate_is_not_for_is_refused() {
    let authority = Authority::new();
    let files = authority.files("server");
    let server = TlsServer::open(&files.cert, &files.key, TlsVersion::Tls12, &TlsSuites::default()).unwrap();
    let (listener, addr) = listen(Protocol::Tls, Some(&server)).await;
    let accepting = tokio::spawn(accept(listener));
    let trust = TlsTrust::from(Trust::Ca(files.ca));
    let client = TlsClient::trusting(&trust).unwrap();
    let refusal = connect_to(addr, Protocol::Tls, "elsewhere.example", Some(&client)).await.unwrap_err().to_string();
    assert!(refusal.contains("elsewhere.example") && refusal.contains("for other names"), "{refusal}");
    assert!(accepting.await.unwrap().is_err());
}

/// A folder as Kubernetes mounts a Secret: links to files behind one link, which is swapped when they are renewed.
fn mounted(authority: &Authority) -> (tempfile::TempDir, TlsFiles) {
    let dir = tempfile::tempdir().unwrap();
    let link = |name: &str| {
        let file = dir.path().join(name);
        symlink(Path::new("..data").join(name), &file).unwrap();
        file
    };
    let files = TlsFiles { ca: link("ca.crt"), cert: link("server.crt"), key: link("server.key") };
    mount(&dir, authority);
    (dir, files)
}

fn mount(dir: &tempfile::TempDir, authority: &Authority) {
    let new = dir.path().join("..data_tmp");
    symlink(authority.0.path(), &new).unwrap();
    fs::rename(new, dir.path().join("..data")).unwrap();
}

#[tokio::test]
async fn renewed_certificates_are_used_without_a_restart() {
    let (first, second) = (Authority::new(), Authority::new());
    let (dir, files) = mounted(&first);
    let server = TlsServer::load(&files).unwrap();
    let (Listener::Stream(listener), addr) = listen(Protocol::Tls, Some(&server)).await else {
        panic!("TLS is a stream")
    };
    let accepting = tokio::spawn(async move {
        while let Ok(handshake) = listener.accept().await {
            // Of those who do not trust what is shown it fails.
            let _ = handshake.complete().await;
        }
    });
    let reached = async |client: TlsClient| connect_to(addr, Protocol::Tls, "localhost", Some(&client)).await.is_ok();
    assert!(reached(first.client()).await && !reached(second.client()).await);
    mount(&dir, &second);
    timeout(Duration::from_secs(20), async {
        while !reached(second.client()).await {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("what is there now is shown");
    assert!(!reached(first.client()).await);
    // What makes no pair, or is not there, leaves the last that did.
    let key = second.files("server").key;
    fs::copy(first.files("server").key, &key).unwrap();
    for _ in 0..2 {
        sleep(Duration::from_millis(1_200)).await;
        assert!(reached(second.client()).await);
        let _ = fs::remove_file(&key);
    }
    accepting.abort();
}
