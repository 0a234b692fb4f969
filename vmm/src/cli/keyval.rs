//! Option values of the form `key=value,key=value,flag`.

/// A value taken apart; each key is taken out once, and left-over ones are errors.
#[derive(Debug)]
pub struct KeyValues<'a> {
    known: &'static str,
    pairs: Vec<(&'a str, Option<&'a str>)>,
}

impl<'a> KeyValues<'a> {
    /// Takes `text` apart. `known` lists the keys for messages.
    pub fn parse(known: &'static str, text: &'a str) -> Result<KeyValues<'a>, String> {
        let mut pairs: Vec<(&str, Option<&str>)> = Vec::new();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (part, None),
            };
            if pairs.iter().any(|(k, _)| *k == key) {
                return Err(format!("{key:?} is given twice"));
            }
            pairs.push((key, value));
        }
        Ok(KeyValues { known, pairs })
    }

    /// The value of `key`, if it is given.
    pub fn take(&mut self, key: &str) -> Result<Option<&'a str>, String> {
        let Some(at) = self.pairs.iter().position(|(k, _)| *k == key) else { return Ok(None) };
        match self.pairs.remove(at).1 {
            Some(value) if !value.is_empty() => Ok(Some(value)),
            _ => Err(format!("{key} needs a value, as in {}", self.known)),
        }
    }

    /// The value of `key`, which must be given.
    pub fn require(&mut self, key: &str) -> Result<&'a str, String> {
        self.take(key)?.ok_or_else(|| format!("{key}=… is missing, as in {}", self.known))
    }

    /// Whether the flag `key` is given.
    pub fn flag(&mut self, key: &str) -> Result<bool, String> {
        let Some(at) = self.pairs.iter().position(|(k, _)| *k == key) else { return Ok(false) };
        match self.pairs.remove(at).1 {
            None => Ok(true),
            Some(_) => Err(format!("{key} takes no value")),
        }
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<(), String> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("{key:?} is not known; write {}", self.known)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_apart_and_complains() {
        let parse = |t| KeyValues::parse("tap=NAME", t);
        let mut kv = parse("tap=t0,fast").unwrap();
        assert_eq!(kv.require("tap"), Ok("t0"));
        assert_eq!(kv.flag("fast"), Ok(true));
        assert_eq!(kv.take("mac"), Ok(None));
        kv.finish().unwrap();
        assert!(parse("tap=a,tap=b").is_err());
        assert!(parse("tap").unwrap().require("tap").is_err());
        assert!(parse("tap=").unwrap().take("tap").is_err());
        assert!(parse("").unwrap().require("tap").unwrap_err().contains("missing"));
        assert!(parse("fast=1").unwrap().flag("fast").is_err());
        assert!(parse("what=1").unwrap().finish().unwrap_err().contains("\"what\" is not known"));
    }
}
