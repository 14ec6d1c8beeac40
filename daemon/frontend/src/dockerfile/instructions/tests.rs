use super::*;

fn file(text: &str) -> Result<Dockerfile, Error> {
    let parsed = parser::parse(text.as_bytes())?;
    parse(&parsed.nodes, &Linter::off())
}
