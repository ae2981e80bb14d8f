"""Numbers of the system calls that confined code may make.

Each entry is `name:x86_64:aarch64`; `-` where the architecture has no such call. Everything that is
not listed is refused: among others new processes and programs, sockets, signals to others, ptrace,
changes of mode and owner, mounts, keys, bpf, io_uring, System V and POSIX message objects.
"""

_ALLOWED = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 close:3:57 fstat:5:80
stat:4:- lstat:6:- newfstatat:262:79 statx:332:291 lseek:8:62 mmap:9:222 munmap:11:215
mprotect:10:226 mremap:25:216 madvise:28:233 brk:12:214 rt_sigaction:13:134
rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigsuspend:130:133
rt_sigtimedwait:128:137 sigaltstack:131:132 access:21:- faccessat:269:48 faccessat2:439:439
pipe:22:- pipe2:293:59 select:23:- pselect6:270:72 poll:7:- ppoll:271:73 epoll_create:213:-
epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 epoll_pwait2:441:441
eventfd:284:- eventfd2:290:19 timerfd_create:283:85 timerfd_settime:286:86
timerfd_gettime:287:87 sched_yield:24:124 sched_getaffinity:204:123 dup:32:23 dup2:33:-
dup3:292:24 nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113 clock_getres:229:114
gettimeofday:96:169 time:201:- getpid:39:172 gettid:186:178 getppid:110:173 getpgrp:111:-
getpgid:121:155 getsid:124:156 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177
getgroups:115:158 getresuid:118:148 getresgid:120:150 socketpair:53:199 sendto:44:206
recvfrom:45:207 sendmsg:46:211 recvmsg:47:212 shutdown:48:210 getsockname:51:204
getpeername:52:205 getsockopt:55:209 setsockopt:54:208 exit:60:93 exit_group:231:94 futex:202:98
set_robust_list:273:99 get_robust_list:274:100 rseq:334:293 restart_syscall:219:128
getrandom:318:278 uname:63:160 flock:73:32 fsync:74:82 fdatasync:75:83 ftruncate:77:46
truncate:76:45 fallocate:285:47 getdents:78:- getdents64:217:61 getcwd:79:17 chdir:80:49
fchdir:81:50 open:2:- openat:257:56 openat2:437:437 creat:85:- rename:82:- renameat:264:38
renameat2:316:276 mkdir:83:- mkdirat:258:34 rmdir:84:- unlink:87:- unlinkat:263:35 link:86:-
linkat:265:37 symlink:88:- symlinkat:266:36 readlink:89:- readlinkat:267:78 umask:95:166
getrlimit:97:163 getrusage:98:165 sysinfo:99:179 times:100:153 arch_prctl:158:-
set_tid_address:218:96 membarrier:324:283 setitimer:38:103 getitimer:36:102 alarm:37:-
pause:34:- timer_create:222:107 timer_settime:223:110 timer_gettime:224:108 timer_delete:226:111
timer_getoverrun:225:109 copy_file_range:326:285 sendfile:40:71 statfs:137:43 fstatfs:138:44
close_range:436:436 getcpu:309:168 fadvise64:221:223 sync_file_range:277:84 mincore:27:232
msync:26:227 setrlimit:160:164
"""

# What a fork server needs besides, and its children do not get.
_SERVER = """
wait4:61:260 setsid:112:157 landlock_restrict_self:446:446 chmod:90:- fchmodat:268:53
"""

# Allowed for some arguments only; the rules are in `seccomp`.
_CONDITIONAL = """
clone:56:220 clone3:435:435 kill:62:129 tgkill:234:131 prlimit64:302:261 prctl:157:167
ioctl:16:29 fcntl:72:25
"""

_COLUMNS = {"x86_64": 1, "aarch64": 2}
ARCHITECTURES = frozenset(_COLUMNS)

# The newest call known to this table; later ones answer "not implemented", so that a newer C
# library falls back to what it did before.
NEWEST = 462


def _column(table: str, machine: str) -> dict[str, int]:
    rows = (entry.split(":") for entry in table.split())
    return {row[0]: int(row[_COLUMNS[machine]]) for row in rows if row[_COLUMNS[machine]] != "-"}


def allowed(machine: str) -> dict[str, int]:
    """Calls that are allowed whatever their arguments."""
    return _column(_ALLOWED, machine)


def server(machine: str) -> dict[str, int]:
    """Calls that only a fork server may make."""
    return _column(_SERVER, machine)


def conditional(machine: str) -> dict[str, int]:
    """Calls whose arguments decide."""
    return _column(_CONDITIONAL, machine)
