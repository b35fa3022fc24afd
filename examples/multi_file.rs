//! Puts a project of several files into a machine, builds it there with `make`'s little sister, the shell, and takes
//! the results out.
//!
//! ```text
//! cargo run --release --example multi_file [DIRECTORY]     # where the results go; shown only, unless given
//! ```

use std::error::Error;

use cc::process::Stdio;

/// What the project is made of: path and content.
const PROJECT: &[(&str, &str)] = &[
    (
        "build.sh",
        "#!/bin/sh\nset -e\n. lib/page.sh\nmkdir -p out\nfor f in text/*.txt; do page \"$f\"; done\n",
    ),
    (
        "lib/page.sh",
        "page() {\n  name=$(basename \"$1\" .txt)\n  { echo \"<h1>$name</h1>\"; sed 's,^,<p>,' \"$1\"; } > \"out/$name.html\"\n}\n",
    ),
    ("text/first.txt", "One file leads\nto another.\n"),
    ("text/second.txt", "And that is all.\n"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let instance = cc::Instance::new(cc::Source::busybox()?)?;
    for (path, content) in PROJECT {
        let path = std::path::Path::new("/srv/project").join(path);
        if let Some(dir) = path.parent() {
            instance.create_dir_all(dir)?;
        }
        instance.write(&path, content)?;
    }
    instance.set_permissions("/srv/project/build.sh", cc::fs::Permissions::from_mode(0o755))?;

    let mut build = instance.command("./build.sh");
    let status = build.current_dir("/srv/project").stdin(Stdio::null()).status()?;
    if !status.success() {
        return Err(format!("the build ended with {status}").into());
    }
    let mut pages: Vec<_> = instance.read_dir("/srv/project/out")?.collect::<Result<_, _>>()?;
    pages.sort_by_key(cc::fs::DirEntry::file_name);
    for page in pages {
        println!("{}:", page.file_name().to_string_lossy());
        print!("{}", instance.read_to_string(page.path())?);
    }
    if let Some(dir) = std::env::args_os().nth(1) {
        instance.copy_out("/srv/project/out", &dir)?;
        println!("and in {}", dir.display());
    }
    Ok(())
}
