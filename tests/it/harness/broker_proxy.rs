use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

const FETCH: i16 = 1;
const CONSUMER_GROUP_HEARTBEAT: i16 = 68;
/// Where an answer to a heartbeat has its error: after a number, no tags, and the time of a
/// throttle.
const HEARTBEAT_ERROR: std::ops::Range<usize> = 9..11;

/// A way to a broker whose answers can be swallowed, changed or withheld.
pub(crate) struct BrokerProxy {
    /// As for `kafka.brokers`.
    pub address: String,
    broker: String,
    state: Arc<State>,
}

struct State {
    /// The host and the port that the broker goes by in its answers, and those that clients are to
    /// know.
    theirs: Vec<u8>,
    ours: Mutex<Vec<u8>>,
    connections: AtomicUsize,
    /// Connections before this one get no answers to their fetches.
    deaf: AtomicUsize,
    swallowed: AtomicUsize,
    is_hung: AtomicBool,
    /// The error that the next heartbeat is answered with, or 0.
    heartbeat_error: AtomicI16,
    /// Connections to addresses before this one hang.
    present: watch::Sender<usize>,
    is_cut: watch::Sender<bool>,
}

/// What a connection leads to: the bootstrap address, or an address of the broker.
#[derive(Clone, Copy)]
enum Address {
    Bootstrap,
    Broker(usize),
}

impl BrokerProxy {
    pub(crate) async fn before(broker: &str) -> Self {
        let (listener, address) = listen().await;
        let state = Arc::new(State {
            theirs: as_answered(broker),
            ours: Mutex::new(as_answered(&address)),
            connections: AtomicUsize::new(0),
            deaf: AtomicUsize::new(0),
            swallowed: AtomicUsize::new(0),
            is_hung: AtomicBool::new(false),
            heartbeat_error: AtomicI16::new(0),
            present: watch::Sender::new(0),
            is_cut: watch::Sender::new(false),
        });
        tokio::spawn(accept(listener, Address::Bootstrap, broker.to_owned(), Arc::clone(&state)));
        Self { address, broker: broker.to_owned(), state }
    }

    /// Gives the broker a new address behind the same bootstrap address. Connections to its former
    /// addresses hang from then on, as those to a machine that is gone.
    pub(crate) async fn move_broker(&self) {
        let (listener, address) = listen().await;
        let number = *self.state.present.borrow() + 1;
        let state = Arc::clone(&self.state);
        tokio::spawn(accept(listener, Address::Broker(number), self.broker.clone(), state));
        *self.state.ours.lock().expect("the address") = as_answered(&address);
        self.state.present.send_replace(number);
    }

    /// Ends all connections, and every new one at once.
    pub(crate) fn cut(&self) {
        self.state.is_cut.send_replace(true);
    }

    /// Takes connections and lets nothing through any more, as a broker does that is stopped.
    pub(crate) fn hang(&self) {
        self.state.is_hung.store(true, Ordering::SeqCst);
    }

    /// Lets through what was held up, and all that comes.
    pub(crate) fn mend(&self) {
        self.state.is_hung.store(false, Ordering::SeqCst);
        self.state.is_cut.send_replace(false);
    }

    /// Swallows the answers to fetches on all connections that there are. New ones work.
    pub(crate) fn swallow_fetches(&self) {
        self.state.deaf.store(self.state.connections.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// How many answers were swallowed.
    pub(crate) fn swallowed(&self) -> usize {
        self.state.swallowed.load(Ordering::SeqCst)
    }

    /// Answers the next heartbeat of a KIP-848 member with this error.
    pub(crate) fn fail_heartbeat(&self, error: i16) {
        self.state.heartbeat_error.store(error, Ordering::SeqCst);
    }

    /// Whether that heartbeat has been answered.
    pub(crate) fn has_failed_heartbeat(&self) -> bool {
        self.state.heartbeat_error.load(Ordering::SeqCst) == 0
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
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

async fn accept(listener: TcpListener, address: Address, broker: String, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(carry(client, address, broker.clone(), Arc::clone(&state)));
    }
}

async fn carry(client: TcpStream, address: Address, broker: String, state: Arc<State>) {
    let (mut present, mut is_cut) = (state.present.subscribe(), state.is_cut.subscribe());
    let Ok(server) = TcpStream::connect(&broker).await else { return };
    let number = state.connections.fetch_add(1, Ordering::SeqCst);
    let requests = Mutex::new(HashMap::new());
    let ((from_client, mut to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let gone = async |present: &mut watch::Receiver<usize>| match address {
        Address::Bootstrap => std::future::pending().await,
        Address::Broker(number) => drop(present.wait_for(|present| *present > number).await),
    };
    let hangs = tokio::select! {
        _closed = carry_requests(from_client, to_server, &requests, &state) => false,
        // The client's half is kept, so that the connection stays open.
        _closed = carry_answers(from_server, &mut to_client, &requests, number, &state) => false,
        () = gone(&mut present) => true,
        _cut = is_cut.wait_for(|is_cut| *is_cut) => false,
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    drop(to_client);
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
    kinds: &Mutex<HashMap<Vec<u8>, i16>>,
    state: &State,
) -> std::io::Result<()> {
    loop {
        let request = read(&mut from).await?;
        state.let_through().await;
        let kind = i16::from_be_bytes([request[0], request[1]]);
        kinds.lock().expect("the requests").insert(request[4..8].to_vec(), kind);
        write(&mut to, &request).await?;
    }
}

async fn carry_answers(
    mut from: OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    kinds: &Mutex<HashMap<Vec<u8>, i16>>,
    connection: usize,
    state: &State,
) -> std::io::Result<()> {
    loop {
        let mut answer = read(&mut from).await?;
        state.let_through().await;
        let kind = kinds.lock().expect("the requests").remove(&answer[..4]);
        match kind {
            Some(FETCH) => {
                if connection < state.deaf.load(Ordering::SeqCst) {
                    state.swallowed.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
            }
            Some(CONSUMER_GROUP_HEARTBEAT) => {
                let error = state.heartbeat_error.swap(0, Ordering::SeqCst);
                if error != 0 {
                    answer[HEARTBEAT_ERROR].copy_from_slice(&error.to_be_bytes());
                }
            }
            // Else the client would go to the broker itself from then on.
            _ => {
                let (theirs, ours) = (&state.theirs, state.ours.lock().expect("the address"));
                if let Some(start) = answer.windows(theirs.len()).position(|bytes| bytes == theirs)
                {
                    answer[start..start + ours.len()].copy_from_slice(&ours);
                }
            }
        }
        write(to, &answer).await?;
    }
}
