//! Output that is dropped, not delayed, when there is too much of it: whoever writes it (a guest to
//! its console) cannot be made to wait.

use std::io::{self, Write};
use std::time::Instant;

use super::{Bucket, BucketConfig};

/// A writer that lets pass what its bucket holds; the rest is gone.
pub struct LimitedWriter<W, F> {
    inner: W,
    bucket: Option<Bucket>,
    start: Instant,
    dropped: F,
}

impl<W: Write, F: FnMut(u64)> LimitedWriter<W, F> {
    /// Limits `inner` to `bytes`; `dropped` is told how many were lost, each time.
    pub fn new(inner: W, bytes: BucketConfig, dropped: F) -> LimitedWriter<W, F> {
        LimitedWriter { inner, bucket: Bucket::new(bytes), start: Instant::now(), dropped }
    }
}

impl<W: Write, F: FnMut(u64)> Write for LimitedWriter<W, F> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if let Some(bucket) = &mut self.bucket {
            let (now, len) = (self.start.elapsed(), buf.len() as u64);
            if !bucket.holds(now, len) {
                (self.dropped)(len);
                return Ok(buf.len());
            }
            bucket.charge(now, len);
        }
        // What is not written of it was paid for, and is paid for again with the rest.
        self.inner.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_dropped_and_counted() {
        let config =
            |size, refill_time| BucketConfig { size, one_time_burst: Some(2), refill_time };
        let mut lost = 0;
        let mut limited = LimitedWriter::new(Vec::new(), config(3, 3_600_000), |n| lost += n);
        for byte in b"abcdefgh" {
            limited.write_all(&[*byte]).unwrap();
        }
        assert_eq!((limited.inner, lost), (b"abcde".to_vec(), 3));
        // Larger than the bucket does not pass either, though it would make debt elsewhere.
        let mut lost = 0;
        let mut limited = LimitedWriter::new(Vec::new(), config(3, 3_600_000), |n| lost += n);
        limited.write_all(b"123456").unwrap();
        assert_eq!((limited.inner, lost), (vec![], 6));
        let never = |n| panic!("{n} bytes dropped");
        let mut unlimited = LimitedWriter::new(Vec::new(), config(0, 0), never);
        unlimited.write_all(&[7; 10_000]).unwrap();
        assert_eq!(unlimited.inner.len(), 10_000);
        let mut quick = LimitedWriter::new(Vec::new(), config(1, 1), never);
        for _ in 0..5 {
            quick.write_all(b"x").unwrap();
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        assert_eq!(quick.inner, b"xxxxx");
    }
}
