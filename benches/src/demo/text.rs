//! Tables on a terminal: the first column stands left, the others right.

/// Cells below each other, one line a row, each line indented.
pub fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let length =
        |row: &Vec<String>, column: usize| row.get(column).map_or(0, |c| c.chars().count());
    let width = |column| rows.iter().map(|row| length(row, column)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            line.push_str("  ");
            match column {
                0 => line.push_str(&format!("{cell:<width$}")),
                _ => line.push_str(&format!("{cell:>width$}")),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Bytes in MiB.
pub fn mib(bytes: u64) -> String {
    match bytes {
        0 => "0".into(),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}

/// Milliseconds, as exact as they deserve.
pub fn millis(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0} ms") } else { format!("{value:.1} ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [vec!["a", "pages", ""], vec!["long", "7", "é"]];
        let rows = rows.map(|row| row.into_iter().map(String::from).collect());
        assert_eq!(align(&rows), "  a     pages\n  long      7  é\n");
        assert_eq!(align(&[]), "");
    }

    #[test]
    fn numbers_fit_their_size() {
        assert_eq!((mib(0), mib(3 << 19)), ("0".into(), "1.5 MiB".into()));
        assert_eq!((millis(2.345), millis(234.5)), ("2.3 ms".into(), "234 ms".into()));
    }
}
