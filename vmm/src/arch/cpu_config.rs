//! `cpu-config`: a template that changes what the guest sees of its processor, bit by bit.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A custom CPU template. Registers of other architectures (`reg_modifiers`, `vcpu_features`) are
/// unknown fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    /// Capabilities of KVM that the machine needs, or (`!`) does not.
    #[serde(default)]
    pub kvm_capabilities: Vec<Capability>,
    /// Changes of CPUID leaves.
    #[serde(default)]
    pub cpuid_modifiers: Vec<LeafModifier>,
    /// Changes of model-specific registers.
    #[serde(default)]
    pub msr_modifiers: Vec<MsrModifier>,
}

/// A capability of KVM, as `"121"` or `"!121"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// KVM must have it.
    Needed(u32),
    /// It need not be there.
    NotNeeded(u32),
}

/// Changes of one CPUID leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeafModifier {
    /// EAX.
    #[serde(serialize_with = "hex", deserialize_with = "number")]
    pub leaf: u32,
    /// ECX.
    #[serde(serialize_with = "hex", deserialize_with = "number")]
    pub subleaf: u32,
    /// KVM's flags of the leaf.
    pub flags: u32,
    /// Its registers.
    pub modifiers: Vec<RegisterModifier>,
}

/// Changes of one register of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterModifier {
    /// Which.
    pub register: Register,
    /// Its bits.
    pub bitmap: Bitmap<u32>,
}

/// A register that CPUID writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "names of registers")]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Changes of one model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsrModifier {
    /// Which.
    #[serde(serialize_with = "hex", deserialize_with = "number")]
    pub addr: u32,
    /// Its bits.
    pub bitmap: Bitmap<u64>,
}

/// Bits to set, to clear, and to leave, as text `0b1x0`: the last character is bit 0, `_` only
/// separates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bitmap<T> {
    /// Bits that are changed.
    mask: T,
    /// What they become.
    value: T,
}

impl Bitmap<u64> {
    /// The register with its bits changed.
    pub fn apply(self, register: u64) -> u64 {
        register & !self.mask | self.value
    }

    fn parse(text: &str, width: u32) -> Result<Bitmap<u64>, String> {
        let bad = |why| format!("Failed to parse string [{text}] as a bitmap - {why}");
        let (mut mask, mut value, mut bits) = (0u64, 0u64, 0);
        for c in text.strip_prefix("0b").unwrap_or(text).chars().filter(|c| *c != '_') {
            if bits == width {
                return Err(bad(format!("more than {width} bits")));
            }
            let (changed, set) = match c {
                'x' => (0, 0),
                '0' => (1, 0),
                '1' => (1, 1),
                other => return Err(bad(format!("unknown character: {other}"))),
            };
            (mask, value, bits) = (mask << 1 | changed, value << 1 | set, bits + 1);
        }
        Ok(Bitmap { mask, value })
    }

    fn show(self, width: u32) -> String {
        let bit = |at: u32| match (self.mask >> at & 1, self.value >> at & 1) {
            (0, _) => 'x',
            (_, 0) => '0',
            _ => '1',
        };
        "0b".chars().chain((0..width).rev().map(bit)).collect()
    }
}

impl Bitmap<u32> {
    /// The register with its bits changed.
    pub fn apply(self, register: u32) -> u32 {
        register & !self.mask | self.value
    }
}

impl<'de> Deserialize<'de> for Bitmap<u64> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Bitmap::parse(&String::deserialize(deserializer)?, 64).map_err(D::Error::custom)
    }
}

impl Serialize for Bitmap<u64> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.show(64))
    }
}

impl<'de> Deserialize<'de> for Bitmap<u32> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Bitmap { mask, value } =
            Bitmap::parse(&String::deserialize(deserializer)?, 32).map_err(D::Error::custom)?;
        Ok(Bitmap { mask: mask as u32, value: value as u32 })
    }
}

impl Serialize for Bitmap<u32> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let wide = Bitmap { mask: self.mask.into(), value: self.value.into() };
        serializer.serialize_str(&wide.show(32))
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Capability::Needed(number) => write!(f, "{number}"),
            Capability::NotNeeded(number) => write!(f, "!{number}"),
        }
    }
}

impl Serialize for Capability {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Capability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (digits, capability): (_, fn(u32) -> Capability) = match text.strip_prefix('!') {
            Some(digits) => (digits, Capability::NotNeeded),
            None => (text.as_str(), Capability::Needed),
        };
        let number = digits.parse().map_err(|_| {
            D::Error::custom(format!(
                "[{text}] is not a KVM capability such as \"121\" or \"!121\""
            ))
        })?;
        Ok(capability(number))
    }
}

/// A number as text, in hexadecimal (`0x`), binary (`0b`) or decimal.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    let (digits, radix) = match (text.strip_prefix("0x"), text.strip_prefix("0b")) {
        (Some(digits), _) => (digits, 16),
        (_, Some(digits)) => (digits, 2),
        _ => (text.as_str(), 10),
    };
    u32::from_str_radix(digits, radix).map_err(|e| {
        let message = format!("Failed to parse string [{text}] as a number for CPU template - {e}");
        D::Error::custom(message)
    })
}

fn hex<S: Serializer>(number: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{number:#x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_template_and_back() {
        let template = json!({
            "kvm_capabilities": ["121", "!122"],
            "cpuid_modifiers": [{
                "leaf": "0x80000001", "subleaf": "0b0111", "flags": 1,
                "modifiers": [{"register": "ecx", "bitmap": "0b1x_0"}],
            }],
            "msr_modifiers": [{"addr": "0x10a", "bitmap": "0x1".replace("0x", "")}],
        });
        let config: CpuConfig = serde_json::from_value(template).unwrap();
        assert_eq!(config.kvm_capabilities, [Capability::Needed(121), Capability::NotNeeded(122)]);
        let leaf = &config.cpuid_modifiers[0];
        assert_eq!((leaf.leaf, leaf.subleaf, leaf.flags), (0x8000_0001, 7, 1));
        assert_eq!(leaf.modifiers[0].bitmap.apply(0b1111_1011), 0b1111_1110);
        let msr = config.msr_modifiers[0];
        assert_eq!((msr.addr, msr.bitmap.apply(u64::MAX - 1)), (0x10a, u64::MAX));
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(&format!("\"0b{}1x0\"", "x".repeat(29))), "{text}");
        assert_eq!(serde_json::from_str::<CpuConfig>(&text).unwrap(), config);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |body| serde_json::from_value::<CpuConfig>(body).unwrap_err().to_string();
        let msr = |addr: &str, bitmap: &str| {
            error(json!({"msr_modifiers": [{"addr": addr, "bitmap": bitmap}]}))
        };
        assert!(msr("0jj0", "0b1").contains("[0jj0] as a number"));
        assert!(msr("0x1", "0b12").contains("unknown character: 2"));
        assert!(msr("0x1", &"x".repeat(65)).contains("more than 64 bits"));
        assert!(error(json!({"kvm_capabilities": ["x"]})).contains("[x] is not a KVM capability"));
        assert!(error(json!({"reg_modifiers": []})).contains("unknown field `reg_modifiers`"));
        let register = json!({"cpuid_modifiers": [{"leaf": "1", "subleaf": "0", "flags": 0,
                              "modifiers": [{"register": "ekx", "bitmap": "0b1"}]}]});
        assert!(error(register).contains("unknown variant `ekx`"));
    }
}
