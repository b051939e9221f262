# SPDX-License-Identifier: Apache-2.0
"""The command line: one module a verb, each thin: parse, call, print, exit code."""
