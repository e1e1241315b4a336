"""``python -m fastlstm`` is the same as ``fastlstm``."""

from fastlstm.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
