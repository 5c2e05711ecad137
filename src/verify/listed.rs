use serde::{Serialize, Serializer};

/// Most entries of a kind that a report lists. The others are counted.
const MAX_LISTED: usize = 1_000;

/// The first entries of a kind, and the number of all. JSON has the first ones as an array.
#[derive(Debug)]
pub(crate) struct Listed<T> {
    first: Vec<T>,
    count: u64,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { first: Vec::new(), count: 0 }
    }
}

impl<T> Listed<T> {
    pub(super) fn add(&mut self, entry: T) {
        self.count += 1;
        if self.first.len() < MAX_LISTED {
            self.first.push(entry);
        }
    }

    /// Adds entries that are not known one by one.
    pub(super) fn add_unlisted(&mut self, count: u64) {
        self.count += count;
    }

    pub(crate) fn first(&self) -> &[T] {
        &self.first
    }

    /// The number of all entries, listed or not.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl<T> Extend<T> for Listed<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, entries: I) {
        entries.into_iter().for_each(|entry| self.add(entry));
    }
}

impl<T: Serialize> Serialize for Listed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.first.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_beyond_the_limit_are_counted_and_not_kept() {
        let mut listed = Listed::default();
        listed.extend(0..MAX_LISTED + 5);
        listed.add_unlisted(7);

        assert_eq!((listed.first().len(), listed.count()), (MAX_LISTED, MAX_LISTED as u64 + 12));
        assert_eq!(serde_json::to_value(&listed).unwrap().as_array().unwrap().len(), MAX_LISTED);
    }
}
