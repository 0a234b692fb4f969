//! What happened in each cell.

/// Printed when it is dropped, however that comes.
pub struct Table {
    rows: String,
    /// The cell that is carried out.
    at: String,
}

impl Table {
    pub fn new() -> Table {
        let mut table = Table { rows: String::new(), at: String::new() };
        table.row("process", "phase", ["kill", "stop", "restart"]);
        table
    }

    pub fn at(&mut self, cell: String) {
        self.at = cell;
    }

    pub fn row(&mut self, process: &str, phase: &str, [kill, stop, restart]: [&str; 3]) {
        let row = format!("{process:<8} {phase:<19} {kill:<38} {stop:<33} {restart}\n");
        self.rows.push_str(&row);
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let failed = if std::thread::panicking() { &self.at } else { "" };
        println!("\n{}{failed}", self.rows);
    }
}
