//! Tables as text and as JSON.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::stats::Samples;

/// A cell.
#[derive(Debug, Clone)]
pub enum Cell {
    /// Nothing to say.
    Empty,
    /// Words.
    Text(String),
    /// A number with so many digits behind the point.
    Number(f64, usize),
}

impl Cell {
    /// Words.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// Milliseconds.
    pub fn ms(duration: Duration) -> Self {
        Self::Number(duration.as_secs_f64() * 1e3, 2)
    }

    fn json(&self) -> Value {
        match self {
            Self::Empty => Value::Null,
            Self::Text(text) => json!(text),
            Self::Number(number, _) => json!(number),
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => Ok(()),
            Self::Text(text) => f.pad(text),
            Self::Number(number, digits) => f.pad(&format!("{number:.digits$}")),
        }
    }
}

/// A table; the first cell of each row is its name.
#[derive(Debug, Clone)]
pub struct Table {
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub fn new(title: impl Into<String>, columns: &[&str]) -> Self {
        Self { title: title.into(), columns: columns.iter().map(|&name| name.to_owned()).collect(), rows: Vec::new() }
    }

    /// Columns for [`Table::samples`].
    pub fn of_samples(title: impl Into<String>) -> Self {
        Self::new(title, &["", "n", "p50 ms", "p95 ms", "p99 ms"])
    }

    /// Adds a row.
    pub fn row(&mut self, name: impl Into<String>, cells: impl IntoIterator<Item = Cell>) -> &mut Self {
        self.rows.push(std::iter::once(Cell::text(name)).chain(cells).collect());
        self
    }

    /// Adds a row of order statistics.
    pub fn samples(&mut self, name: impl Into<String>, samples: &Samples) -> &mut Self {
        let percentiles = [50, 95, 99].map(|percent| Cell::ms(samples.percentile(percent)));
        let count = Cell::Number(samples.count() as f64, 0);
        self.row(name, std::iter::once(count).chain(percentiles))
    }

    /// Titles, column names and numbers.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(|row| row.iter().map(Cell::json).collect()).collect();
        json!({ "title": self.title, "columns": self.columns, "rows": rows })
    }

    fn widths(&self) -> Vec<usize> {
        let wide = |text: String| text.chars().count();
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column)).map(Cell::to_string);
        let columns = self.columns.iter().enumerate();
        columns.map(|(column, name)| cells(column).map(wide).max().unwrap_or(0).max(name.chars().count())).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        writeln!(f, "  {}", self.title)?;
        let head: Vec<Cell> = self.columns.iter().map(Cell::text).collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = String::from("   ");
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let text = cell.to_string();
                let padded = if column == 0 { format!(" {text:<width$}") } else { format!("  {text:>width$}") };
                line.push_str(&padded);
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// The description of the machine, one fact per line.
pub fn text_of_machine(machine: &Value) -> String {
    let facts = machine.as_object().into_iter().flatten();
    let lines = facts.map(|(name, value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("  {name:<22} {value}\n")
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_stay_numbers() {
        let mut table = Table::new("t", &["", "a", "long"]);
        table.row("x", [Cell::Number(1.0, 1), Cell::Empty]).row("yy", [Cell::Number(10.0, 1), Cell::text("z")]);
        assert_eq!(table.to_string(), "  t\n           a  long\n    x    1.0\n    yy  10.0     z\n");
        assert_eq!(table.json()["rows"][1], json!(["yy", 10.0, "z"]));
    }
}
