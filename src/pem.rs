//! Files of certificates and keys, as text.

/// Every section of a PEM file begins with this text.
const BEGIN: &[u8] = b"-----BEGIN ";

/// Whether a file has a section of PEM, whatever it contains.
pub(crate) fn has_section(file: &[u8]) -> bool {
    file.windows(BEGIN.len()).any(|text| text == BEGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_section_if_the_text_of_its_beginning_is_there() {
        assert!(has_section(b"a comment\n-----BEGIN CERTIFICATE-----\n"));
        assert!(!has_section(b"-----BEGINNING") && !has_section(b""));
    }
}
