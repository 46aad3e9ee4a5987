//! `--rootfs` and `--rootfs-overlay`: the same files whatever way they take into the guest.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use tests::{Case, Invocation, Store, Test};

/// Every system call of these programs costs where the guest's kernel is interpreted.
const TIMEOUT: Duration = Duration::from_secs(900);

/// A way of a root file system into the guest, as it is asked for.
type Way = [&'static str; 2];

const HOST: Way = ["--rootfs=fs", "--rootfs-overlay=host"];
const GUEST: Way = ["--rootfs=fs", "--rootfs-overlay=guest"];
const BLOCK: Way = ["--rootfs=block", "--rootfs-overlay=guest"];

/// A test for each way.
macro_rules! on_all_ways {
    ($($check:ident => $host:ident, $guest:ident, $block:ident;)*) => {
        $(
            fn $host(case: &Case) -> Result<()> { $check(case, HOST) }
            fn $guest(case: &Case) -> Result<()> { $check(case, GUEST) }
            fn $block(case: &Case) -> Result<()> { $check(case, BLOCK) }
        )*
        fn on_all_ways() -> Vec<Test> {
            crate::tests![$($host, $guest, $block),*].into()
        }
    };
}

on_all_ways! {
    programs_find_what_they_expect =>
        programs_find_what_they_expect_by_host,
        programs_find_what_they_expect_by_guest,
        programs_find_what_they_expect_by_block;
    no_entry_of_a_large_tree_is_missing =>
        no_entry_of_a_large_tree_is_missing_by_host,
        no_entry_of_a_large_tree_is_missing_by_guest,
        no_entry_of_a_large_tree_is_missing_by_block;
    the_image_keeps_its_owners_modes_and_attributes =>
        the_image_keeps_its_owners_modes_and_attributes_by_host,
        the_image_keeps_its_owners_modes_and_attributes_by_guest,
        the_image_keeps_its_owners_modes_and_attributes_by_block;
}

pub(crate) fn tests() -> Vec<Test> {
    let debian = on_all_ways().into_iter().map(|test| test.on(Store::Debian));
    let layered =
        crate::tests![layers_are_merged_as_on_the_host].map(|test| test.on(Store::Layered));
    let empty = crate::tests![a_disk_is_kept_for_the_next_container_and_goes_with_its_image]
        .map(|test| test.on(Store::Empty));
    let others = crate::tests![
        a_disk_takes_nothing,
        the_host_cannot_stack_what_is_on_a_disk,
        a_container_knows_its_name_on_every_way,
        a_root_can_be_read_only_on_every_way,
    ];
    debian.chain(layered).chain(empty).chain(others).collect()
}

fn run(case: &Case, way: Way, args: &[&str]) -> Invocation {
    case.run(way).args(args).timeout(TIMEOUT)
}

/// Python of the Debian image: what each check does, and that it is done, is printed.
const EXPECTATIONS: &str = r#"
import errno, fcntl, os, stat
os.makedirs('/t'); os.chdir('/t')

def fails(error, call, *args):
    try: call(*args)
    except OSError as err: assert err.errno == error, err; return
    raise AssertionError('it did not fail')

def write(path, text):
    with open(path, 'w') as file: file.write(text)

def read(path):
    with open(path) as file: return file.read()

def in_child(call):
    child = os.fork()
    if child == 0:
        try: call(); os._exit(0)
        except BaseException as err: print(repr(err), flush=True); os._exit(1)
    assert os.waitpid(child, 0)[1] == 0

# /usr/share/base-passwd/passwd.master, /etc/issue and /opt are the image's own.

def permissions():
    write('own', 'x'); os.chmod('own', 0o640); os.chown('own', 1000, 50)
    s = os.stat('own'); assert (s.st_mode & 0o7777, s.st_uid, s.st_gid) == (0o640, 1000, 50)
    os.mkdir('dir', 0o700); os.chmod('/etc/issue', 0o600)
    assert os.stat('/etc/issue').st_mode & 0o7777 == 0o600
    def stranger():
        os.setgid(4242); os.setuid(4242)
        for path in ['own', '/etc/shadow', '/etc/issue']: fails(errno.EACCES, open, path)
        fails(errno.EACCES, os.listdir, 'dir')
        fails(errno.EACCES, os.mkdir, '/opt/new')
        fails(errno.EPERM, os.chmod, '/etc/hosts', 0o666)
    in_child(stranger)
    os.chmod('/opt', 0o777)
    def now():
        os.setgid(4242); os.setuid(4242); os.mkdir('/opt/new')
        assert os.stat('/opt/new').st_uid == 4242
    in_child(now)

def hard_links():
    write('one', 'a'); os.link('one', 'two')
    assert os.stat('one').st_ino == os.stat('two').st_ino and os.stat('one').st_nlink == 2
    with open('two', 'a') as file: file.write('b')
    assert read('one') == 'ab'
    os.unlink('one'); assert os.stat('two').st_nlink == 1 and read('two') == 'ab'
    os.link('/etc/issue', '/etc/issue.two')
    with open('/etc/issue.two', 'a') as file: file.write('more')
    assert read('/etc/issue').endswith('more')

def renames():
    write('a', 'a'); write('b', 'b'); os.rename('a', 'b')
    assert read('b') == 'a' and not os.path.exists('a')
    old = read('/etc/hostname'); write('/etc/new', 'new'); os.rename('/etc/new', '/etc/issue')
    assert read('/etc/issue') == 'new'
    os.mkdir('full'); write('full/x', ''); os.mkdir('empty')
    fails(errno.ENOTEMPTY, os.rename, 'empty', 'full'); os.rename('full', 'empty')
    assert os.listdir('empty') == ['x']
    with open('b') as file:
        os.unlink('b'); assert file.read() == 'a'

def unlinked_files():
    file = open('gone', 'w+'); file.write('still'); file.flush(); os.unlink('gone')
    assert not os.path.exists('gone') and os.fstat(file.fileno()).st_nlink == 0
    file.seek(0); assert file.read() == 'still'
    file.write(' here'); file.seek(0); assert file.read() == 'still here'
    file.truncate(2); file.seek(0); assert file.read() == 'st'
    low = open('/usr/share/base-passwd/passwd.master'); first = low.readline()
    os.unlink(low.name); low.seek(0); assert low.readline() == first
    os.mkdir('d'); here = os.open('d', os.O_RDONLY); os.rmdir('d'); assert os.listdir(here) == []

def syncs():
    fd = os.open('sync', os.O_WRONLY | os.O_CREAT); os.write(fd, b'x')
    os.fsync(fd); os.fdatasync(fd); os.close(fd)
    fd = os.open('.', os.O_RDONLY); os.fsync(fd); os.close(fd)
    fd = os.open('sync', os.O_WRONLY | os.O_SYNC); os.write(fd, b'y'); os.close(fd)
    os.sync(); assert read('sync') == 'y'

def locks():
    write('lock', 'x' * 100); mine = open('lock', 'r+')
    fcntl.flock(mine, fcntl.LOCK_EX)
    def flocked(): fails(errno.EAGAIN, fcntl.flock, open('lock'), fcntl.LOCK_EX | fcntl.LOCK_NB)
    in_child(flocked); fcntl.flock(mine, fcntl.LOCK_UN)
    in_child(lambda: fcntl.flock(open('lock'), fcntl.LOCK_EX | fcntl.LOCK_NB))
    fcntl.lockf(mine, fcntl.LOCK_EX, 10, 20)
    def ranges():
        other = open('lock', 'r+'); wait = fcntl.LOCK_EX | fcntl.LOCK_NB
        fails(errno.EAGAIN, fcntl.lockf, other, wait, 1, 29)
        fcntl.lockf(other, wait, 10, 30)
    in_child(ranges)
    # What a process held goes with it.
    in_child(lambda: fcntl.lockf(open('lock', 'r+'), fcntl.LOCK_EX, 5, 90))
    fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 90)

def attributes():
    write('x', '')
    os.setxattr('x', 'user.one', b'1'); os.setxattr('x', 'user.two', b'2' * 1000)
    assert sorted(os.listxattr('x')) == ['user.one', 'user.two']
    assert os.getxattr('x', 'user.two') == b'2' * 1000
    os.removexattr('x', 'user.one'); assert os.listxattr('x') == ['user.two']
    fails(errno.ENODATA, os.getxattr, 'x', 'user.one')
    os.setxattr('/etc/hosts', 'user.low', b'low')
    assert os.getxattr('/etc/hosts', 'user.low') == b'low' and '127.0.0.1' in read('/etc/hosts')

def special_files():
    os.mkfifo('fifo'); os.symlink('nowhere', 'link'); assert os.readlink('link') == 'nowhere'
    assert stat.S_ISFIFO(os.stat('fifo').st_mode)
    with open('sparse', 'wb') as file: file.truncate(1 << 30)
    assert os.stat('sparse').st_size == 1 << 30 and os.stat('sparse').st_blocks < 2048
    with open('append', 'a') as file: file.write('1')
    with open('append', 'a') as file: file.write('2')
    assert read('append') == '12'
    fails(errno.EEXIST, os.open, 'append', os.O_CREAT | os.O_EXCL)
    os.utime('append', ns=(10**18, 2 * 10**18)); assert os.stat('append').st_mtime_ns == 2 * 10**18

failed = []
for check in [permissions, hard_links, renames, unlinked_files, syncs, locks, attributes, special_files]:
    try: check()
    except BaseException as err:
        line = err.__traceback__.tb_next
        while line and line.tb_next: line = line.tb_next
        failed.append(f'{check.__name__}: {err!r} in line {line and line.tb_lineno}')
print('\n'.join(failed) or 'all is well')
"#;

/// What Python has no modules for in a small Debian. Numbers of system calls: read 0, mmap 9,
/// msync 26, inotify_add_watch 254, inotify_init1 294.
const MAPS_AND_NOTIFICATIONS: &str = r#"
use strict; use warnings;
# A shared map is written to by read(2), from a pipe.
sub map_of { my ($file, $length, $writable) = @_;
    my $at = syscall(9, 0, $length, $writable ? 3 : 1, 1, fileno $file, 0);
    $at > 0 or die "mmap: $!"; $at }
sub put { my ($at, $text) = @_; pipe my $out, my $in; syswrite $in, $text;
    syscall(0, fileno $out, $at, length $text) == length $text or die "read: $!" }
sub get { unpack "P$_[1]", pack 'J', $_[0] }
mkdir '/m'; open my $map, '+>', '/m/map'; truncate $map, 12288;
my ($one, $two) = map { map_of($map, 12288, 1) } 1, 2;
put($one + 4090, '0123456789'); get($two + 4090, 10) eq '0123456789' or die 'maps differ';
if (!fork) { put($two, 'child'); exit } wait; get($one, 5) eq 'child' or die 'no word of a child';
syscall(26, $one, 12288, 4) == 0 or die "msync: $!";
sysseek $map, 4090, 0; sysread $map, my $read, 10; $read eq '0123456789' or die 'not in the file';
sysseek $map, 0, 0; syswrite $map, 'W'; get($two, 5) eq 'Whild' or die 'a write is not in the map';
open my $low, '+<', '/usr/share/base-passwd/group.master'; my $shown = map_of($low, 4096, 1);
put($shown, 'ROOT'); open my $again, '<', '/usr/share/base-passwd/group.master';
readline($again) =~ /^ROOT/ or die 'a file of the image does not show what its map got';
mkdir '/n'; mkdir '/n/own'; chdir '/n/own';
my $fd = syscall(294, 0); $fd >= 0 or die "inotify: $!";
open my $events, '<&=', $fd or die;
# MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE
for my $name ('/n/own', '/srv') { my $path = $name; syscall(254, $fd, $path, 0x3c2) >= 0 or die "$path: $!" }
sub next_events {
    sysread $events, my $data, 65536; my @found;
    while (length $data) {
        my ($mask, $length) = (unpack 'l L L L', $data)[1, 3];
        push @found, sprintf '%x %s', $mask & 0xfff, unpack 'Z*', substr $data, 16, $length;
        $data = substr $data, 16 + $length;
    }
    join ', ', @found
}
if (!fork) { open my $file, '>', 'seen'; print $file 'x'; close $file; exit }
wait; rename 'seen', 'moved'; unlink 'moved';
my $found = next_events();
$found eq '100 seen, 2 seen, 40 seen, 80 moved, 200 moved' or die $found;
mkdir '/srv/dir'; $found = next_events(); $found eq '100 dir' or die $found;
print "all is told\n";
"#;

fn programs_find_what_they_expect(case: &Case, way: Way) -> Result<()> {
    // Python first, and Perl.
    let script = format!(
        "python3 - <<'end'\n{EXPECTATIONS}end\nperl - <<'end'\n{MAPS_AND_NOTIFICATIONS}end\n"
    );
    run(case, way, &["-i", "debian", "sh"])
        .stdin(script)
        .run()?
        .prints("all is well\nall is told\n")?;
    Ok(())
}

/// Finds every file of the image by walking, has a look at some of them, and the same with those that
/// it makes beside them.
const WALK: &str = r#"
import os, sys
total, new = int(sys.argv[1]), 300
expected = {f'/tree/{number % 20}/{number}' for number in range(total)}
for number in range(total, total + new):
    path = f'/tree/{number % 20}/{number}'
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY)); expected.add(path)
found = [os.path.join(at, name) for at, _, names in os.walk('/tree') for name in names]
assert len(found) == len(set(found)), 'an entry was there twice'
assert set(found) == expected, (len(found), sorted(expected - set(found))[:5])
for path in sorted(expected)[::23]: assert os.stat(path).st_size == 0
print(len(found))
"#;

fn no_entry_of_a_large_tree_is_missing(case: &Case, way: Way) -> Result<()> {
    let (total, limit) = if crate::full() {
        (100_000, 4096)
    } else {
        (20_000, 1024)
    };
    let tree = layer(case)?.join("tree");
    for directory in 0..20 {
        fs::create_dir_all(tree.join(directory.to_string()))?;
    }
    for number in 0..total {
        fs::File::create(tree.join(format!("{}/{number}", number % 20)))?;
    }
    // Both limits, so that the VMM cannot raise its own: fewer than there are files.
    let script = format!("ulimit -n {limit}; exec \"$@\"");
    case.with("/bin/sh", ["-c", &script, "sh"])
        .args([case.built().hrun().into_os_string()])
        .args(["run", "--rm"])
        .args(way)
        .args(["debian", "python3", "-c", WALK, &total.to_string()])
        .timeout(TIMEOUT)
        .run()?
        .prints(&format!("{}\n", total + 300))?;
    fs::remove_dir_all(tree)?;
    Ok(())
}

/// The only layer of the Debian image.
fn layer(case: &Case) -> Result<std::path::PathBuf> {
    let mut layers = fs::read_dir(case.store().join("images/layers"))?;
    Ok(layers.next().context("the store has no layer")??.path())
}

fn the_image_keeps_its_owners_modes_and_attributes(case: &Case, way: Way) -> Result<()> {
    let layer = layer(case)?;
    // As a package with a program that is allowed something would have it.
    let capability = [&[1, 0, 0, 2, 0, 4, 0, 0][..], &[0; 12]].concat();
    let program = layer.join("usr/bin/env");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&program, "security.capability", &capability, flags)
        .context("Failed to give a program a capability")?;
    let script = r#"
        stat -c '%n %a %u:%g %h %Y' / /tmp /bin/su /etc/shadow /usr/bin/perl /var/mail /root
        python3 -c 'import os; print(os.getxattr("/usr/bin/env", "security.capability").hex())'
        find /usr/bin -name 'perl5*' -samefile /usr/bin/perl | grep -q . && echo linked
    "#;
    let found = run(case, way, &["debian", "sh", "-c", script])
        .run()?
        .exits(0)?;
    let mut expected = String::new();
    use std::os::unix::fs::MetadataExt;
    for name in [
        "",
        "tmp",
        "bin/su",
        "etc/shadow",
        "usr/bin/perl",
        "var/mail",
        "root",
    ] {
        let metadata = fs::symlink_metadata(layer.join(name))?;
        let mtime = if name.is_empty() {
            None
        } else {
            Some(metadata.mtime())
        };
        expected += &format!(
            "/{name} {:o} {}:{} {}",
            metadata.mode() & 0o7777,
            metadata.uid(),
            metadata.gid(),
            metadata.nlink(),
        );
        expected += &mtime.map_or(String::new(), |mtime| format!(" {mtime}"));
        expected.push('\n');
    }
    let text = found.text();
    let mut lines = text.lines().zip(expected.lines());
    for (found, expected) in &mut lines {
        // Directories of an overlay have one link, and the root's time is the container's.
        let words = |line: &str| {
            line.split(' ')
                .take(3)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        ensure!(words(found) == words(expected), "{found} is not {expected}");
    }
    ensure!(text.contains("0100000200040000"), "{text}");
    ensure!(text.contains("linked"), "{text}");
    Ok(())
}

fn layers_are_merged_as_on_the_host(case: &Case) -> Result<()> {
    let script = "find /data /srv /tagged /bin | sort > /list; \
                  xargs stat -c '%n %F %a %u:%g %Y' < /list; \
                  find /data /srv /tagged -type f | sort | xargs md5sum; readlink /data/soft; \
                  [ /data/original -ef /data/hard ] && echo linked";
    let run = |way| {
        run(
            case,
            way,
            &[
                "-u",
                "0",
                "-w",
                "/",
                "--entrypoint",
                "",
                "layered",
                "sh",
                "-c",
                script,
            ],
        )
        .run()?
        .exits(0)
    };
    let on_host = run(HOST)?.text();
    ensure!(on_host.contains("/data/opaque/fresh"), "{on_host}");
    ensure!(!on_host.contains("/data/removed"), "{on_host}");
    for way in [GUEST, BLOCK] {
        let found = run(way)?.text();
        ensure!(found == on_host, "{way:?}: {found}\nis not\n{on_host}");
    }
    Ok(())
}

fn a_disk_is_kept_for_the_next_container_and_goes_with_its_image(case: &Case) -> Result<()> {
    let disks = || -> Result<Vec<_>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(case.store().join("images/erofs"))? {
            let entry = entry?;
            if entry.file_name() != "lock" {
                names.push((entry.path(), entry.metadata()?.modified()?));
            }
        }
        Ok(names)
    };
    case.hrun(["image", "load"])
        .args([case.built().image("busybox/busybox")])
        .run()?
        .exits(0)?;
    run(case, BLOCK, &["busybox", "true"]).run()?.prints("")?;
    let first = disks()?;
    ensure!(first.len() == 1, "{first:?}");
    run(case, BLOCK, &["busybox", "true"]).run()?.prints("")?;
    ensure!(disks()? == first);
    case.hrun(["image", "rm", "busybox"]).run()?.exits(0)?;
    ensure!(disks()?.is_empty());
    Ok(())
}

fn a_disk_takes_nothing(case: &Case) -> Result<()> {
    // The number at byte 1024 is that of EROFS.
    let script = "cat /sys/block/vda/ro /sys/block/vda/serial; echo; \
                  mknod /vda b $(tr : ' ' < /sys/block/vda/dev); \
                  dd if=/dev/zero of=/vda bs=512 count=8 conv=notrunc 2>/dev/null || echo refused; \
                  dd if=/vda bs=4 skip=256 count=1 2>/dev/null | hexdump -e '4/1 \"%02x\"'";
    run(case, BLOCK, &["busybox", "sh", "-c", script])
        .run()?
        .prints("1\nimage\nrefused\ne2e1f5e0")?;
    Ok(())
}

fn the_host_cannot_stack_what_is_on_a_disk(case: &Case) -> Result<()> {
    case.run(["--rootfs=block", "--rootfs-overlay=host", "busybox", "true"])
        .run()?
        .fails_saying(&["--rootfs-overlay guest"])?;
    case.run(["busybox", "true"])
        .env("HRUN_ROOTFS", "block")
        .env("HRUN_ROOTFS_OVERLAY", "host")
        .run()?
        .fails_saying(&["HRUN_ROOTFS_OVERLAY"])?;
    Ok(())
}

fn a_container_knows_its_name_on_every_way(case: &Case) -> Result<()> {
    for way in [HOST, GUEST, BLOCK] {
        let script = "cat /etc/hostname; grep -c box1 /etc/hosts; wc -c < /etc/machine-id; pwd";
        run(
            case,
            way,
            &[
                "-h", "box1", "-w", "/new/dir", "busybox", "sh", "-c", script,
            ],
        )
        .run()?
        .prints("box1\n1\n33\n/new/dir\n")?;
    }
    Ok(())
}

fn a_root_can_be_read_only_on_every_way(case: &Case) -> Result<()> {
    for way in [HOST, GUEST, BLOCK] {
        let script = "(echo x > /etc/new) 2>&1 | grep -o 'Read-only file system'; echo y > /v/file";
        let volume = case.path("v");
        fs::create_dir_all(&volume)?;
        let volume = format!("{}:/v", volume.display());
        run(
            case,
            way,
            &["--read-only", "-v", &volume, "busybox", "sh", "-c", script],
        )
        .run()?
        .prints("Read-only file system\n")?;
        ensure!(fs::read_to_string(case.path("v/file"))? == "y\n");
    }
    Ok(())
}
