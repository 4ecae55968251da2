"""URLs by which somebody who can enqueue callbacks would reach what is ours: none may ever be sent to.

``{port}`` is where a receiver listens on every address. ``HOSTS`` is what the names lead to.
"""

from __future__ import annotations

HOSTS = """\
127.0.0.1 localhost
10.9.9.9 private.test
fd00::9 six.test
::ffff:10.0.0.1 mapped.test
64:ff9b::a00:1 nat64.test
169.254.169.254 metadata.google.internal
127.0.0.1 127.0.0.1.nip.test
10.9.9.9 several.test
192.168.7.7 several.test
fe80::7 several.test
"""

_LOOPBACK = (
    *("127.0.0.1", "127.1", "127.0.1", "127.0.0.1.", "127.255.255.254", "2130706433", "0x7f000001", "0x7F.0.0.1"),
    *("0x7f.1", "0177.0.0.1", "017700000001", "0177.1", "0x7f.0x0.0x0.0x1", "00000177.0.0.1", "0.0.0.0", "0", "0x0"),
    *("00", "0.0.0.1", "\uff11\uff12\uff17.\uff10.\uff10.\uff11", "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460"),
    *("127\u30020\u30020\u30021", "127\uff0e0.0\uff611", "1\u00ad27.0.0.1"),
    *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[0000::0001]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
    *("[::ffff:0:127.0.0.1]", "[::127.0.0.1]", "[::7f00:1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]"),
)
_PRIVATE = (
    *("10.0.0.1", "10.1", "167772161", "0xa000001", "012.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("192.168.257", "3232235777", "0xc0a80101", "0300.0250.1.1", "100.64.0.1", "100.127.255.255", "192.0.0.8"),
    *("192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250"),
    *("240.0.0.1", "255.255.255.255", "[::ffff:10.0.0.1]", "[0:0:0:0:0:ffff:a00:1]", "[::10.0.0.1]"),
    *("[64:ff9b::10.0.0.1]", "[64:ff9b:1::1]", "[64:ff9b:1::a00:1]", "[2002:a00:1::1]", "[2002:c0a8:101::]"),
    *("[2001:0:a00:1::f5ff:fffe]", "[2001:db8::1]", "[3fff::1]", "[fc00::1]", "[fdff::1]", "[fe80::1]", "[fec0::1]"),
    *("[ff02::1]", "[ff05::1:3]", "[5f00::1]", "[100::1]", "[2001:2::1]", "[2001:20::1]", "[4000::1]"),
)
_METADATA = (
    *("169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "169.16689662"),
    *("169.254.169.254.", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    *("[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]", "[::a9fe:a9fe]", "[2002:a9fe:a9fe::]"),
    *("[fd00:ec2::254]", "[fd20:ce::254]", "metadata.google.internal"),
)
_NAMES = (
    *("localhost", "LOCALHOST", "LocalHost.", "\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54"),
    *("\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3", "lo\u00adcalhost", "loc\u200balhost"),
    *("private.test", "PRIVATE.TEST", "private\u3002test", "six.test", "mapped.test", "nat64.test", "several.test"),
    "127.0.0.1.nip.test",
)

BLOCKED = (
    *(f"http://{host}:{{port}}/" for host in _LOOPBACK),
    *(f"http://{host}:{{port}}?x" for host in _PRIVATE),
    *(f"http://{host}:{{port}}/latest/meta-data/" for host in _METADATA),
    *(f"http://{host}:{{port}}#x" for host in _NAMES),
    "https://127.0.0.1:{port}/",
    "HTTP://127.0.0.1:{port}",
    "http://127.0.0.1:{port}/@8.8.8.8/",
    "http://127.0.0.1:{port}?@8.8.8.8/",
    "http://127.0.0.1:{port}#@8.8.8.8/",
    "HTTP://[::1]:{port}",
)

INVALID = (
    # somebody else's host to one parser, ours to another
    "http://8.8.8.8@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}@8.8.8.8/",
    "http://8.8.8.8:80@127.0.0.1:{port}/",
    "http://8.8.8.8\\@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@8.8.8.8/",
    "http://8.8.8.8%23@127.0.0.1:{port}/",
    "http://8.8.8.8%2f@127.0.0.1:{port}/",
    "http://8.8.8.8&@127.0.0.1:{port}#@8.8.8.8/",
    "http://127.0.0.1:80:{port}/",
    "http://127.0.0.1:{port}\t/",
    "http://127.0.0.1\t:{port}/",
    "http:\\\\127.0.0.1:{port}\\",
    "http:127.0.0.1:{port}",
    "http:/127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}/",
    "\thttp://127.0.0.1:{port}/",
    "h\nttp://127.0.0.1:{port}/",
    # escapes and zones
    "http://%31%32%37.0.0.1:{port}/",
    "http://loc%61lhost:{port}/",
    "http://127.0.0.1%00.example.com:{port}/",
    "http://127.0.0.1%2eexample.com:{port}/",
    "http://localhost\0.example.com:{port}/",
    "http://localhost%0a.example.com:{port}/",
    "http://[::1%25lo]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://[fe80::1%lo]:{port}/",
    # nearly addresses
    "http://256.0.0.1:{port}/",
    "http://0x7f.0.0.0.1:{port}/",
    "http://127.0.0.1.1:{port}/",
    "http://0x7f00000001:{port}/",
    "http://4294967297:{port}/",
    "http://[127.0.0.1]:{port}/",
    "http://[::1:{port}/",
    "http://::1:{port}/",
    "http://[::1]{port}/",
    "http://[[::1]]:{port}/",
    "http://[::ffff:127.0.0.1.]:{port}/",
    "http://127.0.0.1:+{port}/",
    "http://127.0.0.1: {port}/",
    # requests in requests
    "http://127.0.0.1:{port}/\r\nHost: 127.0.0.1",
    "http://127.0.0.1:{port}/ HTTP/1.1\r\n\r\nPOST /",
    "http://127.0.0.1:{port}\r\n/",
    "http://127.0.0.1\u2028:{port}/",
    # other schemes
    "file:///etc/passwd",
    "file://127.0.0.1/etc/passwd",
    "gopher://127.0.0.1:{port}/_FLUSHALL",
    "dict://127.0.0.1:{port}/info",
    "ftp://127.0.0.1:{port}/",
    "ldap://127.0.0.1:{port}/",
    "telnet://127.0.0.1:{port}",
    "ws://127.0.0.1:{port}/",
    "unix:///run/docker.sock",
    "http+unix://%2Frun%2Fdocker.sock/",
    "jar:http://127.0.0.1:{port}/!/",
    "view-source:http://127.0.0.1:{port}/",
    "javascript:fetch('http://127.0.0.1:{port}')",
    "data:text/plain,http://127.0.0.1:{port}/",
    "url:http://127.0.0.1:{port}/",
)
