//! What a page is for.

/// What the snapshot says about a page: how recorded invocations use it, and so where it should be
/// restored from. It says nothing about where the page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum PageClass {
    /// All zero, and not written by a recorded invocation. Stored nowhere.
    Zero = 0,
    /// Read by recorded invocations, never written.
    ReadOnly = 1,
    /// Written by recorded invocations; of a zero page only the length is stored.
    ReadWrite = 2,
    /// Not zero, and not touched by a recorded invocation.
    Cold = 3,
}

impl PageClass {
    /// All classes, in the order in which they are laid over one another, bottom first.
    pub const BOTTOM_UP: [PageClass; 4] =
        [PageClass::Zero, PageClass::Cold, PageClass::ReadOnly, PageClass::ReadWrite];

    /// The class with this number in a file.
    pub fn from_number(number: u8) -> Option<PageClass> {
        Self::BOTTOM_UP.into_iter().find(|&class| class as u8 == number)
    }

    /// Its name in reports and file names.
    pub fn name(self) -> &'static str {
        match self {
            PageClass::Zero => "zero",
            PageClass::ReadOnly => "ro",
            PageClass::ReadWrite => "rw",
            PageClass::Cold => "cold",
        }
    }
}
