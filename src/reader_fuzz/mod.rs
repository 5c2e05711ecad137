//! Feeds a reader of bytes from outside with all kinds of input. Part of the unit tests alone.
//!
//! Each reader has a corpus: the files of `tests/corpus/READER/`. [`fuzz`] reads all of them. Then
//! it reads mutations of them. A mutation with a new result joins the corpus in memory, so later
//! mutations begin nearer to rare branches.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `STOCKLOCK_FUZZ_SECONDS` | how long each reader reads mutations; without it, 2,000 are read |
//! | `STOCKLOCK_FUZZ_SEED` | the same seed makes the same mutations (1) |

mod mutation;

use std::{
    collections::HashSet,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mutation::Mutator;

/// How many mutations a reader reads without a given time.
const USUAL_MUTATIONS: u64 = 2_000;
/// The most inputs that are mutated.
const MAX_POOL: usize = 4_096;
/// The longest that one input may take, on a busy machine.
const MAX_READ_TIME: Duration = Duration::from_secs(20);

/// Fails if `read` panics, or if it takes too long. `read` returns a text about its result: the
/// error, or something about the value. Digits in it do not count as a difference.
///
/// An input that fails is left in `target/fuzz/readers/`. As a file of the corpus, it is read by
/// each later run.
pub(crate) fn fuzz(reader: &str, read: impl Fn(&[u8]) -> String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut run = Run { reader, read, results: HashSet::new(), slowest: Duration::ZERO };
    let mut pool = corpus(&root.join("tests/corpus").join(reader));
    for input in &pool {
        run.read(input);
    }
    let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = setting("STOCKLOCK_FUZZ_SECONDS").map(Duration::from_secs);
    let mut mutator = Mutator::new(setting("STOCKLOCK_FUZZ_SEED").unwrap_or(1));
    let (begun, mut count) = (Instant::now(), 0);
    while seconds.map_or(count < USUAL_MUTATIONS, |seconds| begun.elapsed() < seconds) {
        let input = mutator.mutate(&pool);
        count += 1;
        if run.read(&input) && pool.len() < MAX_POOL {
            pool.push(input);
        }
    }
    println!(
        "{reader}: {count} mutations, {} results, {} ms at most",
        run.results.len(),
        run.slowest.as_millis()
    );
}

/// The inputs of a folder, in the order of their names.
fn corpus(folder: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{folder:?} has no files");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// One reader, and what it did so far.
struct Run<'a, R> {
    reader: &'a str,
    read: R,
    /// The digests of all results.
    results: HashSet<u64>,
    slowest: Duration,
}

impl<R: Fn(&[u8]) -> String> Run<'_, R> {
    /// Returns whether the result is new.
    fn read(&mut self, input: &[u8]) -> bool {
        let begun = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| (self.read)(input)));
        let took = begun.elapsed();
        self.slowest = self.slowest.max(took);
        match result {
            Ok(result) if took <= MAX_READ_TIME => self.results.insert(digest(&result)),
            Ok(_) => self.fail(input, &format!("took {} s", took.as_secs())),
            Err(_) => self.fail(input, "panicked"),
        }
    }

    fn fail(&self, input: &[u8], how: &str) -> ! {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz/readers");
        let file = folder.join(format!("{}-{:016x}", self.reader, digest(&format!("{input:?}"))));
        fs::create_dir_all(&folder).unwrap();
        fs::write(&file, input).unwrap();
        panic!("the reader of {} {how}; the input is {}", self.reader, file.display());
    }
}

/// A digest of a text without its digits.
fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    for character in text.chars().filter(|character| !character.is_ascii_digit()).take(200) {
        character.hash(&mut hasher);
    }
    hasher.finish()
}

#[test]
#[should_panic(expected = "the reader of order_status panicked")]
fn a_reader_that_panics_fails_the_run() {
    fuzz("order_status", |input| {
        assert!(input.len() != 61, "a length that only a mutation has");
        String::new()
    });
}
