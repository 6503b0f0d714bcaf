//! ZooKeeper, as Debian packages it, by which the ClickHouse servers of a cluster agree.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::clickhouse::ending_with_parent;
use crate::process::{PATIENCE, Process, free_port};
use crate::wait::eventually;

/// One that has its data in a folder of its own.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) addr: SocketAddr,
    _process: Process,
    _folder: tempfile::TempDir,
}

/// Sessions of servers that were killed end after seconds, not half a minute (by 2 and 20 ticks); and a port is enough.
const SETTINGS: &str =
    "tickTime=500\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n4lw.commands.whitelist=srvr\n";

/// One that was asked before it was up may never close the connection.
const ANSWER: Duration = Duration::from_secs(1);

/// What it needs of /usr/share/java to serve by itself.
const LIBRARIES: [&str; 7] =
    ["zookeeper", "zookeeper-jute", "slf4j-api", "slf4j-simple", "metrics-core", "snappy-java", "netty-all"];

impl Keeper {
    /// Starts it and waits until it takes sessions: old servers fall over one that does not yet.
    pub(crate) fn start() -> Result<Keeper> {
        let folder = tempfile::tempdir()?;
        let port = free_port()?;
        let (file, data) = (folder.path().join("zoo.cfg"), folder.path().join("data"));
        std::fs::write(&file, format!("{SETTINGS}clientPort={port}\ndataDir={}\n", data.display()))?;
        let libraries = LIBRARIES.map(|name| format!("/usr/share/java/{name}.jar")).join(":");
        let log = std::fs::File::create(folder.path().join("log"))?;
        let mut command = ending_with_parent()?;
        command.args(["/usr/bin/java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", &libraries]);
        command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(file);
        let process = Process::spawn(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))?;
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        eventually(PATIENCE, || {
            let log = || std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
            ensure!(is_serving(addr), "ZooKeeper does not serve; `cargo xtask setup` installs it: {}", log());
            Ok(())
        })?;
        Ok(Keeper { addr, _process: process, _folder: folder })
    }
}

/// Whether it says that it serves.
fn is_serving(addr: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(addr)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(b"srvr")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    ask().is_ok_and(|answer| answer.contains("Mode: standalone"))
}
