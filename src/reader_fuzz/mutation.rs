//! Mutations of inputs, the same ones for the same seed.

use fastrand::Rng;

/// The longest input that is read.
const MAX_BYTES: usize = 1 << 16;
/// The most changes of one input.
const MAX_CHANGES: usize = 5;
/// The most copies of a piece.
const MAX_COPIES: usize = 300;

/// Bytes that mean something in one of the formats.
const BYTES: &[u8] = b"\0\x01\x02\x7F\x80\xC3\xFF\"'{}[]:;,=\\\n\r\t #.-+eE09";

/// Lengths, counts and numbers at the bounds of a type or of a limit.
const NUMBERS: [i64; 17] = [
    0,
    1,
    -1,
    2,
    100,
    101,
    1_000_001,
    (1 << 20) + 1,
    1 << 22,
    1 << 30,
    1 << 31,
    -(1 << 30),
    1 << 53,
    1 << 62,
    i64::MAX,
    i64::MIN,
    i64::MIN + 1,
];

/// Texts that readers of text have stumbled over.
const TEXTS: [&str; 18] = [
    "null",
    "true",
    "NaN",
    "1e309",
    "-0",
    "1.0",
    "0.1e1",
    "9223372036854775808",
    "99999999999999999999999999999999",
    "\\u0000",
    "\\ud800",
    "\u{feff}",
    "\u{fffd}",
    "\u{2028}",
    "{\"a\":{\"a\":",
    "[[[[[[[[[[",
    "\"\"\"",
    "2026-02-30T25:61:61Z",
];

/// Makes mutations.
pub(super) struct Mutator(Rng);

impl Mutator {
    pub(super) fn new(seed: u64) -> Self {
        Self(Rng::with_seed(seed))
    }

    /// One to [`MAX_CHANGES`] changes of one of the inputs, of which there is at least one.
    pub(super) fn mutate(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut input = pool[self.0.usize(..pool.len())].clone();
        for _ in 0..self.0.usize(1..=MAX_CHANGES) {
            self.change(&mut input, pool);
        }
        input.truncate(MAX_BYTES);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, pool: &[Vec<u8>]) {
        let (from, to) = self.range(input);
        match self.0.u8(..10) {
            0 if from < input.len() => input[from] ^= 1 << self.0.u8(..8),
            1 if from < input.len() => input[from] = BYTES[self.0.usize(..BYTES.len())],
            2 => drop(input.drain(from..to)),
            3 => input.truncate(from),
            4 => {
                let copies = self.0.usize(1..=MAX_COPIES).min(MAX_BYTES / (to - from + 1));
                let piece = input[from..to].repeat(copies);
                input.splice(from..from, piece);
            }
            5 => {
                let other = &pool[self.0.usize(..pool.len())];
                let (other_from, other_to) = self.range(other);
                input.splice(from..to, other[other_from..other_to].iter().copied());
            }
            6 => {
                let number = NUMBERS[self.0.usize(..NUMBERS.len())];
                input.splice(from..(from + 1).min(to), zigzag(number));
            }
            7 => {
                let number = NUMBERS[self.0.usize(..NUMBERS.len())].to_string();
                let digits = digits_from(input, from);
                input.splice(digits, number.into_bytes());
            }
            8 => {
                let text = TEXTS[self.0.usize(..TEXTS.len())];
                input.splice(from..from, text.bytes());
            }
            _ => {
                let random: Vec<u8> = (0..self.0.usize(1..9)).map(|_| self.0.u8(..)).collect();
                input.splice(from..from, random);
            }
        }
    }

    /// A range of the input, mostly a short one.
    fn range(&mut self, input: &[u8]) -> (usize, usize) {
        let from = self.0.usize(..=input.len());
        let longest = input.len() - from;
        let most = if self.0.bool() { longest.min(8) } else { longest };
        let length = self.0.usize(..=most);
        (from, from + length)
    }
}

/// The next run of digits, or an empty range.
fn digits_from(input: &[u8], from: usize) -> std::ops::Range<usize> {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let begin = input[from..].iter().position(is_digit).map_or(input.len(), |at| from + at);
    let length = input[begin..].iter().take_while(|byte| is_digit(byte)).count();
    begin..begin + length
}

/// A number as Avro writes it (Avro 1.12 specification, "Binary Encoding").
fn zigzag(number: i64) -> Vec<u8> {
    let (mut rest, mut bytes) = (((number << 1) ^ (number >> 63)).cast_unsigned(), Vec::new());
    while rest > 0x7F {
        bytes.push(u8::try_from(rest & 0x7F).unwrap_or_default() | 0x80);
        rest >>= 7;
    }
    bytes.push(u8::try_from(rest).unwrap_or_default());
    bytes
}
