"""The licence note that is written beside each fetched package."""

from channelvq.data.fetched.catalogue import Package

_MIT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""

_APACHE = """\
Licensed under the Apache License, Version 2.0; you may not use these files except in compliance with the License. You
may obtain a copy of the License at https://www.apache.org/licenses/LICENSE-2.0. Unless required by applicable law or
agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR
CONDITIONS OF ANY KIND, either express or implied."""

_CC_BY = """\
Creative Commons Attribution {version}: you may share and adapt the work, also commercially, if you give appropriate
credit, link to the licence and say what you changed. https://creativecommons.org/licenses/by/{version}/legalcode"""

LICENCES = {
    "MIT": _MIT,
    "Apache-2.0": _APACHE,
    "CC-BY-2.0": _CC_BY.format(version="2.0"),
    "CC-BY-4.0": _CC_BY.format(version="4.0"),
    "CC0-1.0": "CC0 1.0: dedicated to the public domain. https://creativecommons.org/publicdomain/zero/1.0/legalcode",
    "GPL-2.0-or-later": "GNU General Public License, version 2 or later. https://www.gnu.org/licenses/gpl-2.0.html",
    "public-domain": "Public domain: no known copyright restrictions.",
}


def licence_text(package: Package) -> str:
    """Whom to credit for each work of a package, then each of its licences."""
    credits = [f"{work.name}: {work.attribution}. Licence: {work.licence}." for work in package.works]
    used = sorted({work.licence for work in package.works})
    return "\n\n".join(["\n".join(credits), *(f"== {name} ==\n{LICENCES[name]}" for name in used)]) + "\n"
