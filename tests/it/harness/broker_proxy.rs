use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

const FETCH: [u8; 2] = 1_i16.to_be_bytes();

/// A way to a broker on which the answers to fetches can be swallowed, and nothing else is.
pub struct BrokerProxy {
    /// As for `kafka.brokers`.
    pub address: String,
    state: Arc<State>,
}

struct State {
    /// The host and the port that the broker goes by in its answers, and ours.
    addresses: [Vec<u8>; 2],
    connections: AtomicUsize,
    /// Connections before this one get no answers to their fetches.
    deaf: AtomicUsize,
    swallowed: AtomicUsize,
    is_hung: AtomicBool,
}

impl BrokerProxy {
    pub async fn before(broker: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let state = Arc::new(State {
            addresses: [broker, &address].map(as_answered),
            connections: AtomicUsize::new(0),
            deaf: AtomicUsize::new(0),
            swallowed: AtomicUsize::new(0),
            is_hung: AtomicBool::new(false),
        });
        tokio::spawn(accept(listener, broker.to_owned(), Arc::clone(&state)));
        Self { address, state }
    }

    /// Swallows the answers to fetches on all connections that there are. New ones work.
    pub fn swallow_fetches(&self) {
        self.state.deaf.store(self.state.connections.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Takes connections and lets nothing through any more, as a broker does that is stopped.
    pub fn hang(&self) {
        self.state.is_hung.store(true, Ordering::SeqCst);
    }

    /// Lets through what was held up, and all that comes.
    pub fn mend(&self) {
        self.state.is_hung.store(false, Ordering::SeqCst);
    }

    /// How many answers were swallowed.
    pub fn swallowed(&self) -> usize {
        self.state.swallowed.load(Ordering::SeqCst)
    }
}

impl State {
    async fn let_through(&self) {
        while self.is_hung.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A host, and its port behind it as 32 bits.
fn as_answered(address: &str) -> Vec<u8> {
    let (host, port) = address.split_once(':').expect("host:port");
    [host.as_bytes(), &port.parse::<i32>().expect("a port").to_be_bytes()].concat()
}

async fn accept(listener: TcpListener, broker: String, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(&broker).await else { continue };
        let number = state.connections.fetch_add(1, Ordering::SeqCst);
        let fetches = Arc::new(Mutex::new(HashSet::new()));
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        let (asked, state) = (Arc::clone(&fetches), Arc::clone(&state));
        tokio::spawn(async move {
            tokio::select! {
                _closed = carry_requests(from_client, to_server, &asked, &state) => {}
                _closed = carry_answers(from_server, to_client, &fetches, number, &state) => {}
            }
        });
    }
}

/// A request or an answer without its length.
async fn read(from: &mut OwnedReadHalf) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; usize::try_from(from.read_i32().await?).expect("a length")];
    from.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn write(to: &mut OwnedWriteHalf, frame: &[u8]) -> std::io::Result<()> {
    to.write_i32(i32::try_from(frame.len()).expect("a length")).await?;
    to.write_all(frame).await
}

/// A request begins with its kind, a version, and the number that its answer begins with.
async fn carry_requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    fetches: &Mutex<HashSet<Vec<u8>>>,
    state: &State,
) -> std::io::Result<()> {
    loop {
        let request = read(&mut from).await?;
        state.let_through().await;
        if request[..2] == FETCH {
            fetches.lock().expect("the fetches").insert(request[4..8].to_vec());
        }
        write(&mut to, &request).await?;
    }
}

async fn carry_answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    fetches: &Mutex<HashSet<Vec<u8>>>,
    connection: usize,
    state: &State,
) -> std::io::Result<()> {
    loop {
        let mut answer = read(&mut from).await?;
        state.let_through().await;
        let is_fetched = fetches.lock().expect("the fetches").remove(&answer[..4]);
        if is_fetched && connection < state.deaf.load(Ordering::SeqCst) {
            state.swallowed.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        // Else the client would go to the broker itself from then on.
        let [theirs, ours] = &state.addresses;
        if !is_fetched && let Some(start) = answer.windows(theirs.len()).position(|bytes| bytes == theirs) {
            answer[start..start + ours.len()].copy_from_slice(ours);
        }
        write(&mut to, &answer).await?;
    }
}
