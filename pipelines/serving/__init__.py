"""Models as MLflow serves them: a bundle with a wrapper, one image in, its objects as GeoJSON-like JSON out.

answers.py  base64 → image → objects → JSON
package.py  a bundle → an MLflow model: models-from-code, signature, example, pinned requirements, card
served.py   the code of that model; it imports maskbridge from where it is served
"""
