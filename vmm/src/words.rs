//! Words that options take, on the command line and in the API alike: serde's names are the only list
//! of them.

use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer};

/// The value that a word stands for. The error lists the words that there are.
pub fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let text: StrDeserializer<'_, Error> = text.into_deserializer();
    T::deserialize(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_memory_tiers::{ColdPages, HugePages, PrefaultBarrier, Strategy};

    #[test]
    fn words_are_serdes() {
        assert_eq!(word("paged"), Ok(ColdPages::Paged));
        assert_eq!(word("written"), Ok(PrefaultBarrier::Written));
        assert_eq!(word("2M"), Ok(HugePages::Pool));
        for strategy in Strategy::ALL {
            assert_eq!(word(strategy.name()), Ok(strategy));
        }
        assert_eq!(
            word::<ColdPages>("warm").unwrap_err(),
            "unknown variant `warm`, expected `mapped` or `paged`"
        );
    }
}
