# Prints what a file tree is, one line a file, in the order of the paths: run on two trees that should be equal.
# Arguments: the tree's root, then paths below it that are left out, with what is in them.
# Directories have no size and no number of links here: those are the file system's own affair.
import hashlib, os, stat, sys

root = os.fsencode(sys.argv[1])
left_out = set(os.fsencode(path) for path in sys.argv[2:])


def walk(path):
    yield path
    if stat.S_ISDIR(os.lstat(root + path or b"/").st_mode):
        for name in sorted(os.listdir(root + path + b"/")):
            below = path + b"/" + name
            if below not in left_out:
                yield from walk(below)


def content(path):
    digest = hashlib.blake2b(digest_size=32)
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFCHR: "char",
         stat.S_IFBLK: "block", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}
seen = {}
for path in walk(b""):
    full = root + path or b"/"
    s = os.lstat(full)
    kind = KINDS[stat.S_IFMT(s.st_mode)]
    # repr of bytes is one line of ASCII whatever is in them.
    line = [repr(path or b"/"), kind, "%o" % stat.S_IMODE(s.st_mode), "%d:%d" % (s.st_uid, s.st_gid),
            "mtime=%d" % s.st_mtime_ns]
    if kind != "dir":
        first = seen.setdefault((s.st_dev, s.st_ino), (path, None))[0]
        line += ["nlink=%d" % s.st_nlink, "size=%d" % s.st_size]
        if first != path:
            line.append("same as %r" % first)
        elif kind == "file":
            line.append(content(full))
    if kind in ("char", "block"):
        line.append("device=%d,%d" % (os.major(s.st_rdev), os.minor(s.st_rdev)))
    if kind == "link":
        line.append("target=%r" % os.readlink(full))
    for name in sorted(os.listxattr(full, follow_symlinks=False)):
        line.append("%s=%s" % (name, os.getxattr(full, name, follow_symlinks=False).hex()))
    print(" ".join(line))
