use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use serde_json::Value;

/// A server that answers one request after another as it is told, each on a connection of its own.
/// It keeps the requests.
pub(crate) struct Stub {
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// Method and path.
    pub(crate) line: String,
    head: Vec<String>,
    pub(crate) body: String,
}

/// The bytes of an answer, and whether the connection stays open after them.
pub(crate) struct Reply {
    bytes: String,
    stays_open: bool,
}

impl Reply {
    /// `status` is the number and the phrase.
    pub(crate) fn empty(status: &str) -> Self {
        Self::with(status, "", "")
    }

    pub(crate) fn json(status: &str, body: &Value) -> Self {
        Self::with(status, "content-type: application/json\r\n", &body.to_string())
    }

    pub(crate) fn replayed(status: &str, body: &Value) -> Self {
        Self::with(status, "idempotent-replayed: true\r\n", &body.to_string())
    }

    /// A stream of events that breaks off after `text`.
    pub(crate) fn events(text: &str) -> Self {
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        Self { bytes: format!("{head}{text}"), stays_open: false }
    }

    /// A stream of events on which nothing follows `text`.
    pub(crate) fn open_events(text: &str) -> Self {
        Self { stays_open: true, ..Self::events(text) }
    }

    /// The answers to the first lines of a batch.
    pub(crate) fn answers(answers: &[Value]) -> Self {
        let lines = answers.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n") + "\n";
        let reply = Self::with("200 OK", "content-type: application/x-ndjson\r\n", &lines);
        Self { stays_open: true, ..reply }
    }

    /// The connection is closed without an answer.
    pub(crate) fn none() -> Self {
        Self { bytes: String::new(), stays_open: false }
    }

    fn with(status: &str, headers: &str, body: &str) -> Self {
        let length = body.len();
        let bytes = format!(
            "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\
             connection: close\r\n\r\n{body}"
        );
        Self { bytes, stays_open: false }
    }
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.head.iter().find_map(|line| line.strip_prefix(&prefix))
    }

    fn read(client: &mut BufReader<TcpStream>) -> Self {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            client.read_line(&mut line).expect("a head");
            if line == "\r\n" {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        let line = head.remove(0).trim_end_matches(" HTTP/1.1").to_owned();
        let mut request = Self { line, head, body: String::new() };
        let length =
            request.header("content-length").map_or(0, |length| length.parse().expect("a number"));
        let mut body = vec![0; length];
        client.read_exact(&mut body).expect("a body");
        request.body = String::from_utf8(body).expect("UTF-8");
        request
    }
}

impl Stub {
    pub(crate) fn answering(replies: impl IntoIterator<Item = Reply>) -> Self {
        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", server.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (replies, kept) = (replies.into_iter().collect::<Vec<_>>(), Arc::clone(&requests));
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for reply in replies {
                let mut client = BufReader::new(server.accept().expect("a client").0);
                let request = Request::read(&mut client);
                kept.lock().expect("no panic").push(request);
                client.get_mut().write_all(reply.bytes.as_bytes()).expect("sent");
                open.extend(reply.stays_open.then_some(client));
            }
            // The open connections live as long as the thread.
            loop {
                std::thread::park();
            }
        });
        Self { url, requests }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }
}
