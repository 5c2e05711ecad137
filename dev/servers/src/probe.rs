//! Short questions to a server, to see whether it answers. Each takes a few seconds at the most.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(5);
/// A Metadata request, version 4, for no topic. Source: the Kafka protocol guide.
const METADATA_REQUEST: [u8; 24] = [
    0, 0, 0, 20, // bytes that follow
    0, 3, 0, 4, // Metadata, version 4
    0, 0, 0, 1, // correlation id
    0, 5, b'p', b'r', b'o', b'b', b'e', // client id
    0, 0, 0, 0, // no topics
    0, // creates none
];

/// Whether somebody listens at an address `HOST:PORT`.
pub fn is_open(address: &str) -> bool {
    connect(address).is_ok()
}

/// Whether a Kafka broker answers and has joined its cluster.
pub fn kafka(address: &str) -> bool {
    let ask = || {
        let mut connection = connect(address)?;
        connection.write_all(&METADATA_REQUEST)?;
        // Length, correlation id, time of a throttle, number of brokers.
        let mut answer = [0; 16];
        connection.read_exact(&mut answer)?;
        io::Result::Ok(answer[12..] != [0; 4])
    };
    ask().unwrap_or(false)
}

/// Whether a Redis master answers. One that asks for a password does.
pub fn redis(address: &str) -> bool {
    let ask = || {
        let mut connection = connect(address)?;
        connection.write_all(b"PING\r\n")?;
        let mut answer = [0; 5];
        connection.read_exact(&mut answer)?;
        io::Result::Ok([b"+PONG", b"-NOAU"].contains(&&answer))
    };
    ask().unwrap_or(false)
}

/// The status and the body that an HTTP server answers to `GET path`.
///
/// Fails if it does not answer within seconds, or with something else than HTTP.
pub fn http_get(address: &str, path: &str) -> io::Result<(u16, String)> {
    let mut connection = connect(address)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes())?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let parsed = answer
        .split_once("\r\n\r\n")
        .and_then(|(head, body)| Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned())));
    parsed.ok_or_else(|| io::Error::other(format!("expected HTTP, found {answer:?}")))
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let connection = TcpStream::connect_timeout(&address, TIMEOUT)?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    connection.set_write_timeout(Some(TIMEOUT))?;
    Ok(connection)
}
