//! Sizes of packets, which the verbs number (`ibv_mtu`): 1 is 256 bytes, 5 is 4096.

/// The size of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mtu(u32);

impl Mtu {
    /// The one of a number, if it is one that the verbs have.
    pub fn numbered(number: u32) -> Option<Mtu> {
        (1..=5).contains(&number).then_some(Mtu(number))
    }

    /// The one of so many bytes, if there is one.
    pub fn of(bytes: u32) -> Option<Mtu> {
        (1..=5).map(Mtu).find(|mtu| mtu.bytes() == bytes)
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self.0
    }

    /// Its bytes.
    pub fn bytes(self) -> u32 {
        128 << self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_verbs() {
        let all: Vec<_> = (0..=40).filter_map(Mtu::numbered).map(Mtu::bytes).collect();
        assert_eq!(all, [256, 512, 1024, 2048, 4096]);
        assert_eq!(Mtu::of(1024).map(Mtu::number), Some(3));
        for none in [0, 128, 1000, 8192, u32::MAX] {
            assert_eq!(Mtu::of(none), None);
        }
        assert_eq!(Mtu::numbered(u32::MAX), None);
    }
}
