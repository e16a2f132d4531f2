.PHONY: test fast lint types hashes ci

test:
	pytest

fast:
	pytest -m fast

lint:
	ruff check .
	ruff format --check .

types:
	pyright

hashes:
	python tools/step_hashes.py --check

ci:
	bash .ci/run
