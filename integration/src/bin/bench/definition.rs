//! The smallest definitions that do the job.

use integration::image;
use prost::Message;
use proto::pb::op::Op as Kind;
use proto::pb::{Definition, ExecOp, Input, Meta, Mount, Op, Platform, SourceOp};

/// A definition in the making: steps on top of an image.
pub(crate) struct Steps {
    def: Vec<Vec<u8>>,
    top: String,
}

impl Steps {
    /// An image.
    pub(crate) fn from(reference: &str) -> Self {
        let mut steps = Self { def: Vec::new(), top: String::new() };
        let identifier = format!("docker-image://{reference}");
        let source = SourceOp { identifier, ..SourceOp::default() };
        steps.push(Vec::new(), Kind::Source(source));
        steps
    }

    /// `/bin/true` with an argument that tells this step from others.
    pub(crate) fn run(self, mark: &str) -> Self {
        self.exec(&["/bin/true", mark])
    }

    /// A script of the shell.
    pub(crate) fn shell(self, script: &str) -> Self {
        self.exec(&["/bin/sh", "-c", script])
    }

    fn exec(mut self, args: &[&str]) -> Self {
        let meta = Meta {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec!["PATH=/bin".into()],
            cwd: "/".into(),
            ..Meta::default()
        };
        let root = Mount { dest: "/".into(), ..Mount::default() };
        let exec = ExecOp { meta: Some(meta), mounts: vec![root], ..ExecOp::default() };
        let below = Input { digest: self.top.clone(), ..Input::default() };
        self.push(vec![below], Kind::Exec(exec));
        self
    }

    fn push(&mut self, inputs: Vec<Input>, op: Kind) {
        let platform = Platform {
            architecture: image::architecture().into(),
            os: "linux".into(),
            ..Platform::default()
        };
        let bytes = Op { inputs, platform: Some(platform), op: Some(op), ..Op::default() }.encode_to_vec();
        self.top = image::digest(&bytes);
        self.def.push(bytes);
    }

    /// What is sent.
    pub(crate) fn definition(mut self) -> Definition {
        let result = Input { digest: self.top, ..Input::default() };
        self.def.push(Op { inputs: vec![result], ..Op::default() }.encode_to_vec());
        Definition { def: self.def, ..Definition::default() }
    }
}

/// A chain of `length` steps on busybox that was never built before.
pub(crate) fn chain(length: usize) -> Definition {
    let mark = crate::daemon::fresh();
    let steps = (0..length).fold(Steps::from(BUSYBOX), |steps, i| steps.run(&format!("{mark}-{i}")));
    steps.definition()
}

/// The base image.
pub(crate) const BUSYBOX: &str = "docker.io/library/busybox:latest";
