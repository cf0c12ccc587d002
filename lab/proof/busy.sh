# SPDX-License-Identifier: Apache-2.0
#
# All that a guest's processes do to the ways into and out of its kernel, as
# many times as $rounds says: every test program, and what busybox makes of
# pipes, archives, forks and signals.
export PATH=/bin
for i in $(seq "$rounds"); do
	for p in t-opens t-forks t-execs t-vfork t-threads t-signals t-frames t-ptrace \
		t-args t-prefix t-cross t-step t-segvh t-segv t-illegal t-x32 t-32 t-32int80 t-int80; do
		$p >>/tmp/programs 2>&1
	done
	t-getppid 100 >>/tmp/programs

	find /bin /lib -type f | sort | xargs ls -l | wc -l
	tar -cf - /bin/t-* | gzip -1 | gunzip | md5sum >/tmp/sum
	for n in 1 2 3 4 5 6 7 8 9 10; do
		(cat /proc/self/stat | cut -d' ' -f1 >/tmp/$n)
	done
	(
		trap 'echo caught' USR1
		kill -USR1 "$(sh -c 'echo $PPID')"
		sleep 1 &
		kill $!
		wait $!
	)
	t-getppid 200 >/dev/null & one=$!
	kill -STOP $one
	kill -CONT $one
	kill $one
	wait $one
done
grep -c . /tmp/programs
