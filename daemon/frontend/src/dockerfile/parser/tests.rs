use super::*;

fn words(data: &str) -> Vec<Vec<String>> {
    let parsed = parse(data.as_bytes()).unwrap();
    parsed.nodes.iter().map(|n| std::iter::once(n.keyword.clone()).chain(n.args()).collect()).collect()
}

fn fails(data: &str) -> (String, Vec<Lines>) {
    let error = parse(data.as_bytes()).unwrap_err();
    (error.to_string(), error.locations)
}
